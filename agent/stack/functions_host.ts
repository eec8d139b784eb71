// Hosts every Edge Function in one process. As on hosted, an entry point calls Deno.serve or exports default { fetch }.
// That call is intercepted, and its handler answers /functions/v1/<name>. A function is imported on its first request.
import { fromGateway, refuse, tellPort } from "./gateway_only.ts";

type Handler = (request: Request, info: Deno.ServeHandlerInfo) => Response | Promise<Response>;

const entrypoints: Record<string, string> = JSON.parse(Deno.env.get("TRADECOPIER_FUNCTIONS") ?? "{}");
Deno.env.delete("TRADECOPIER_FUNCTIONS");

const serve = Deno.serve;
const handlers = new Map<string, Handler>();
let caught: Handler | undefined;

const isHandler = (value: unknown): value is Handler => typeof value === "function";
const handlerIn = (value: unknown): Handler | undefined => {
  if (typeof value === "object" && value !== null) {
    for (const name of ["handler", "fetch"]) {
      const member: unknown = Reflect.get(value, name);
      if (isHandler(member)) return member.bind(value);
    }
  }
  return undefined;
};

Object.defineProperty(Deno, "serve", {
  value: (...given: unknown[]) => {
    caught = given.find(isHandler) ?? given.map(handlerIn).find((handler) => handler !== undefined);
    return {
      finished: new Promise<void>(() => {}),
      shutdown: () => Promise.resolve(),
      ref() {},
      unref() {},
      addr: server.addr,
    };
  },
});

// Imports run one at a time, so that an intercepted handler belongs to the function being imported.
let importing: Promise<unknown> = Promise.resolve();
function load(name: string): Promise<Handler> {
  const loaded = importing.then(async () => {
    const known = handlers.get(name);
    if (known) return known;
    caught = undefined;
    const module: Record<string, unknown> = await import(`file://${entrypoints[name]}`);
    const handler = caught ?? handlerIn(module.default);
    if (!handler) throw new Error(`the entry point neither calls Deno.serve nor exports default { fetch }`);
    handlers.set(name, handler);
    return handler;
  });
  importing = loaded.catch(() => {});
  return loaded;
}

// An unhandled rejection in one function must not end the others.
globalThis.addEventListener("unhandledrejection", (event) => {
  console.error("unhandled rejection", event.reason);
  event.preventDefault();
});

const server = serve({ hostname: "127.0.0.1", port: 0, onListen: tellPort }, async (request, info) => {
  const url = new URL(request.url);
  const asked = fromGateway(request);
  if (asked && url.pathname === "/ready") return new Response("ok");
  const name = url.pathname.split("/")[1] ?? "";
  if (!Object.hasOwn(entrypoints, name)) return refuse(404, "NOT_FOUND", "Requested function was not found");
  if (!asked) return refuse(401, "UNAUTHORIZED", "only the stack's gateway may call this server");
  try {
    const handler = await load(name);
    return await handler(asked, info);
  } catch (error) {
    console.error(`function ${name}`, error);
    const message = handlers.has(name)
      ? "Function failed"
      : `Function could not start: ${error instanceof Error ? error.message : error}`;
    return Response.json(
      { code: handlers.has(name) ? "WORKER_ERROR" : "BOOT_ERROR", message },
      { status: handlers.has(name) ? 500 : 503 },
    );
  }
});
