"""The behaviour of hosted Realtime that a client can see, one line per fact.

`python -m agent.stack.realtime.parity` lists for each fact the tests that show it, per client.

A fact is tested with both official clients unless `only` names one; `because` then gives the reason.
"""

from dataclasses import dataclass
from typing import Literal

Client = Literal["python", "js"]
CLIENTS: tuple[Client, ...] = ("python", "js")


@dataclass(frozen=True, slots=True)
class Fact:
    """`id` is the name that tests give in `@pytest.mark.fact(id)`."""

    id: str
    text: str
    only: Client | None = None
    because: str = ""


_NO_BINARY = "the Python client speaks 1.0.0, which has no binary frames"

FACTS: tuple[Fact, ...] = (
    # Opening a socket
    Fact("handshake.version", "one path serves version 1.0.0 and 2.0.0, each in its own form"),
    Fact("handshake.key-kinds", "sb_publishable_…, sb_secret_… and JWTs all open a socket, given in the query"),
    Fact(
        "handshake.no-key",
        "without a key: 401, API key is missing",
        "python",
        "supabase-js refuses to start without a key",
    ),
    Fact("handshake.malformed", "a key that is no JWT: 401 and a text that says that"),
    Fact("handshake.signature", "a signature with another key: 401 and a text that says that"),
    Fact("handshake.expired", "an expired key: 401, Token has expired"),
    Fact("handshake.claims", "a JWT without role or exp: 401 and a text that names both"),
    Fact("handshake.full", "one socket too many: 429, Too many connected users"),
    Fact("handshake.frame-size", "a frame over 5,000,000 bytes ends the socket"),
    Fact("handshake.no-channel", "a socket that joins no channel is closed after a while"),
    # Frames
    Fact("frames.text", "1.0.0: objects with exactly four keys; 2.0.0: arrays of five, with join_ref"),
    Fact("frames.binary-push", "a binary broadcast push is understood and acknowledged", "js", _NO_BINARY),
    Fact("frames.binary-broadcast", "broadcasts arrive as binary frames with their meta", "js", _NO_BINARY),
    Fact("frames.binary-payload", "raw bytes reach 2.0.0 listeners and never 1.0.0 ones"),
    Fact("frames.long-names", "names over 255 bytes fit no binary frame and still arrive"),
    Fact("frames.across", "a message from one client reaches the other unchanged"),
    Fact(
        "frames.version-1-in-javascript", "supabase-js may request 1.0.0", "js", "the Python client always speaks 1.0.0"
    ),
    # Joining
    Fact("join.reply", "the reply has the join's ref and always a list postgres_changes"),
    Fact("join.order", "reply, then replayed messages, then presence_state"),
    Fact(
        "join.strings",
        "booleans of the configuration may be strings",
        "python",
        "supabase-js' types and code need booleans",
    ),
    Fact("join.odd-config", "configuration values of the wrong type are treated as absent, not refused"),
    Fact("join.twice", "a second join of a topic closes the first, with the first one's ref"),
    Fact("join.changes", "postgres_changes are echoed with integer ids; here a system error follows"),
    Fact("join.topic-required", "an empty topic: TopicNameRequired"),
    Fact("join.private-only", "a public join where only private ones are allowed: PrivateOnly"),
    Fact("join.too-many-channels", "too many channels on a socket: ChannelRateLimitReached"),
    Fact("join.too-many-joins", "too many joins per second: ClientJoinRateLimitReached, and the socket is closed"),
    Fact("join.expired", "an expired token: InvalidJWTToken with its age"),
    Fact("join.malformed", "a token that is no JWT: MalformedJWT"),
    Fact("join.signature", "a foreign signature: JwtSignatureError"),
    Fact("join.claims", "a token without role and exp: InvalidJWTToken"),
    Fact("join.key-token", "an sb_… key in place of the token means the key of the socket"),
    Fact("join.no-database", "no database: UnableToConnectToProject; the client's own retry succeeds later"),
    Fact("join.no-partition", "no partition for today: MissingPartition"),
    # Messages
    Fact("messages.heartbeat", "a heartbeat is answered ok with its own ref, null included"),
    Fact("messages.token-silent", "a new good token gets no reply"),
    Fact("messages.token-ignored", "an sb_… key as new token is ignored"),
    Fact("messages.ack", "a broadcast is acknowledged with its ref if the channel requested it"),
    Fact("messages.no-ack", "otherwise there is no reply"),
    Fact("messages.ack-oversize", "an oversize broadcast with ack: error payload_size_exceeded"),
    Fact("messages.self", "the sender receives its own message only if the channel requested it"),
    Fact("messages.broadcast-shape", "a client's broadcast has type, event, payload and no meta; ref is null"),
    Fact("messages.leave", "leaving: ok, then phx_close with the join's ref"),
    Fact("messages.unmatched", "a message to a topic not joined: unmatched topic"),
    Fact("messages.leave-unmatched", "leaving a topic not joined: ok"),
    Fact("messages.channel-crash", "phx_error with channel_crash makes the client join again"),
    Fact("messages.close-codes", "sockets closed with 1001 or 1012 are opened again and their channels joined"),
    Fact("messages.restart-code", "a stopping server closes with 1012"),
    Fact("messages.system", "system messages have extension, status, message, channel; replication_ready requests one"),
    # Presence
    Fact("presence.empty", "presence_state of an empty topic is {}"),
    Fact("presence.track", "tracking is answered ok; late comers see it in presence_state with a phx_ref"),
    Fact("presence.diff", "presence_diff lists arrivals, updates (phx_ref_prev, old meta among leaves) and departures"),
    Fact("presence.listener", "a presence listener receives the state of all members through the client's callbacks"),
    Fact("presence.gone", "a lost socket takes its presence with it"),
    Fact("presence.key", "without a key the server makes a UUID"),
    Fact("presence.rate", "over 5 calls in 30 s the client's channel is closed with a text that says that"),
    Fact("presence.project-rate", "too many presence messages in the project close the receivers' channels"),
    Fact("presence.denied", "without a write policy presence is silently dropped"),
    # What the clients need
    Fact("client.readable", "every frame passes the client's validation", "python", "supabase-js does not validate"),
    Fact("client.ping", "WebSocket pings are answered", "python", "browsers cannot send pings"),
    Fact("client.large-frame", "over 1 MiB: Python drops the socket and comes back, JavaScript gets the message"),
    Fact("client.fallback", "while not joined, send() goes over REST", "js", "the Python client queues instead"),
    Fact(
        "client.token-callback",
        "the join carries the token of the callback",
        "js",
        "the Python client has no such callback",
    ),
    Fact("client.reconnect", "after a lost connection the client comes back and joins again"),
    # Broadcast from the database
    Fact("database.private", "private rows reach private joiners only, public rows public ones only"),
    Fact("database.id", "meta.id is the row's id, and payload.id too unless the payload has one"),
    Fact("database.order", "commit order; rolled-back messages never"),
    Fact("database.large-transaction", "a thousand messages of one transaction arrive in order"),
    Fact("database.changes", "broadcast_changes sends record, old_record, operation, table, schema"),
    Fact("database.binary", "send_binary reaches 2.0.0 listeners and never 1.0.0 ones"),
    Fact(
        "database.lost-in-sql",
        "sends without a right, with an array, or without payload are lost, and the call succeeds",
    ),
    Fact("database.oversize", "oversize rows are dropped"),
    Fact("database.stream-lost", "channels stay joined while the replication connection is away"),
    Fact("database.restart", "a restart of the database closes no socket; later messages arrive"),
    Fact("replay.newest", "replay: the newest 25 private messages, oldest first, marked replayed"),
    Fact("replay.binary", "binary messages are replayed to 2.0.0 listeners and never to 1.0.0 ones"),
    Fact("replay.since", "replay begins at the wanted moment"),
    Fact("replay.public", "no replay on public channels"),
    # Authorization
    Fact("authorize.refused", "a private join without a read right: Unauthorized, naming the topic"),
    Fact("authorize.claims", "policies see realtime.topic() and the claims"),
    Fact("authorize.headers", "policies see the handshake's headers"),
    Fact("authorize.unknown-role", "a role that does not exist: Unauthorized"),
    Fact("authorize.broken-policy", "a policy that raises: Unauthorized"),
    Fact("authorize.public", "public joins evaluate no policy"),
    Fact("authorize.presence-only", "a subject that may read only presence can join and receives no broadcast"),
    Fact("authorize.write-denied", "a send without a write policy is silently dropped, ack or not"),
    Fact("authorize.write-lazy", "the write policy is evaluated at the first send and cached"),
    Fact(
        "authorize.once",
        "the read policy is evaluated at the join only; a new token that lost it: system error and phx_close",
    ),
    Fact("authorize.write-again", "after a new token the write policy is evaluated again"),
    Fact("authorize.bad-token", "a bad new token: system error and phx_close"),
    Fact(
        "authorize.expiry",
        "expiry of the token: system error with its age, phx_close, and the client does not come back",
    ),
    Fact("authorize.rolled-back", "evaluating policies leaves no row and sends nothing"),
    # REST
    Fact("rest.single", "the single form: 202 and delivered, public and private"),
    Fact("rest.binary", "bytes over HTTP reach 2.0.0 listeners"),
    Fact("rest.denied", "the single form answers 403 when policies deny"),
    Fact("rest.unauthorized", "a bad token: 401, Unauthorized"),
    Fact("rest.invalid", "a payload that is not an object or is too large is refused"),
    Fact("rest.quota", "over the quota: 429, You have exceeded your rate limit"),
    Fact("rest.batch", "the batch form: 202, messages that may not be written are silently skipped"),
    Fact("rest.batch-refused", "a faulty batch is refused whole with 422, a bad token with 401"),
    Fact("rest.batch-too-large", "a batch larger than the quota of a second: 429, please reduce the batch size"),
    # Quota
    Fact(
        "quota.receivers",
        "sends and deliveries count; above the quota, receivers get Too many messages per second and phx_close",
    ),
    Fact("quota.shared", "the quota is the project's: traffic on one topic can close another"),
    Fact("quota.rows", "above the quota, rows are dropped and the channels stay open"),
)
