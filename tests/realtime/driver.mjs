// Drives the official supabase-js for the tests: one JSON request per line in, replies and events out.
// Node 20 has no WebSocket of its own, so `ws` is the transport; subclassed here to show the tests every frame.
import { createInterface } from "node:readline";
import { createClient } from "@supabase/supabase-js";
import WebSocket from "ws";

const clients = new Map();
const channels = new Map();

const emit = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
const shown = (data, isBinary) => (isBinary ? { hex: Buffer.from(data).toString("hex") } : { text: data.toString() });

const bytesOf = (hex) => Uint8Array.from(Buffer.from(hex, "hex")).buffer;

function recorder(name) {
  return class extends WebSocket {
    constructor(address, protocols) {
      super(address, protocols ?? []);
      this.on("message", (data, isBinary) => emit({ client: name, kind: "in", data: shown(data, isBinary) }));
      this.on("open", () => emit({ client: name, kind: "opened", data: null }));
      this.on("close", (code) => emit({ client: name, kind: "closed", data: code }));
      this.on("unexpected-response", (_request, response) => {
        let body = "";
        response.on("data", (chunk) => {
          body += chunk;
        });
        response.on("end", () => {
          emit({ client: name, kind: "refused", data: { status: response.statusCode, body } });
          this.terminate();
        });
      });
    }
    send(data) {
      emit({ client: name, kind: "out", data: shown(data, typeof data !== "string") });
      super.send(data);
    }
  };
}

const commands = {
  open({ client, url, key, token, realtime }) {
    const state = { token };
    const options = {
      auth: { persistSession: false, autoRefreshToken: false },
      realtime: { transport: recorder(client), ...realtime },
    };
    if (token) options.accessToken = async () => state.token;
    clients.set(client, { supabase: createClient(url, key, options), state });
    return true;
  },
  connect({ client }) {
    clients.get(client).supabase.realtime.connect();
    return true;
  },
  join({ client, channel, topic, config, presence, changes }) {
    const joined = clients.get(client).supabase.channel(topic, { config });
    channels.set(channel, joined);
    const event = (kind) => (data) => emit({ channel, kind, data });
    joined.on("broadcast", { event: "*" }, (data) => {
      const binary = data.payload instanceof ArrayBuffer || ArrayBuffer.isView(data.payload);
      const payload = binary ? { hex: Buffer.from(data.payload).toString("hex") } : data.payload;
      emit({ channel, kind: "broadcast", data: { ...data, payload } });
    });
    joined.on("system", {}, event("system"));
    if (presence) {
      joined.on("presence", { event: "sync" }, () => emit({ channel, kind: "sync", data: joined.presenceState() }));
      joined.on("presence", { event: "join" }, event("presence_join"));
      joined.on("presence", { event: "leave" }, event("presence_leave"));
    }
    if (changes) joined.on("postgres_changes", changes, event("change"));
    joined.subscribe((status, error) =>
      emit({ channel, kind: "status", data: { status, error: error ? String(error.message) : null } }),
    );
    return true;
  },
  send: ({ channel, event, payload, hex }) =>
    channels.get(channel).send({ type: "broadcast", event, payload: hex ? bytesOf(hex) : payload }),
  fill: ({ channel, event, bytes }) =>
    channels.get(channel).send({ type: "broadcast", event, payload: { fill: "x".repeat(bytes) } }),
  httpSend: ({ channel, event, payload, hex }) => {
    return channels.get(channel).httpSend(event, hex ? bytesOf(hex) : payload);
  },
  track: ({ channel, payload }) => channels.get(channel).track(payload),
  untrack: ({ channel }) => channels.get(channel).untrack(),
  presence: ({ channel }) => channels.get(channel).presenceState(),
  leave: ({ channel }) => channels.get(channel).unsubscribe(),
  async setAuth({ client, token }) {
    const { supabase, state } = clients.get(client);
    state.token = token;
    await supabase.realtime.setAuth(token);
    return true;
  },
  close({ client }) {
    const entry = clients.get(client);
    clients.delete(client);
    if (entry) void entry.supabase.realtime.disconnect();
    return true;
  },
};

// Clients complain on the console about what the tests provoke on purpose; stdout belongs to the protocol.
console.log = console.warn = console.error = () => {};
process.on("unhandledRejection", (error) => emit({ kind: "fault", data: String(error) }));

const lines = createInterface({ input: process.stdin });
for await (const line of lines) {
  const { id, op, ...rest } = JSON.parse(line);
  Promise.resolve()
    .then(() => commands[op](rest))
    .then((result) => emit({ id, result: result ?? null }))
    .catch((error) => emit({ id, error: String(error.message ?? error) }));
}
process.exit(0);
