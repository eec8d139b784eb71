"""Both clients against the whole embedded stack: keys, tokens and policies of the gateway, Realtime in its process."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import aiohttp
from realtime_peers import Node, js_peer, python_peer

if TYPE_CHECKING:
    from agent.stack.stack import Stack


async def test_both_clients_hear_the_database_through_the_gateway(
    own_stack: "Stack", node_process: Callable[[], Node]
) -> None:
    async with AsyncExitStack() as closing:
        python = python_peer(own_stack.url, own_stack.publishable_key, own_stack.keys.service_role_jwt)
        closing.push_async_callback(python.close)
        js = await js_peer(node_process(), own_stack.url, own_stack.secret_key, None)
        closing.push_async_callback(js.close)
        members = [await peer.joined("vps:7", private=True) for peer in (python, js)]
        async with await own_stack.database.connect_async() as db:
            await db.execute("select realtime.send('{\"n\": 1}', 'execution', 'vps:7', true)")
        for member in members:
            heard = await member.broadcasts.next()
            assert (heard["event"], heard["payload"]["n"]) == ("execution", 1)
        assert await members[0].http_send("hello", {}) is None
        assert (await members[1].broadcasts.next())["event"] == "hello"
        stranger = python_peer(own_stack.url, own_stack.publishable_key, None)
        closing.push_async_callback(stranger.close)
        refused = await stranger.join("vps:7", private=True)
        assert "Unauthorized" in str(await refused.status("CHANNEL_ERROR"))
        async with aiohttp.ClientSession(headers={"apikey": own_stack.secret_key}) as http:
            cut = await http.post(f"{own_stack.url}/realtime/v1/test/cut", json={"topic": "vps:7"})
            assert await cut.json() == {"sockets": 2}
        for member in members:
            await member.status("SUBSCRIBED")
        await own_stack.restart_gateway()
        for member in members:
            await member.status("SUBSCRIBED")
