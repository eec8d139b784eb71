// Authentication happens in the gateway, but any user of the machine can reach a server behind it; so a server requires
// the gateway's secret.
const HEADER = "x-tradecopier-gateway";
const VARIABLE = "TRADECOPIER_GATEWAY_SECRET";

const secret = Deno.env.get(VARIABLE) ?? "";
Deno.env.delete(VARIABLE);

// The request without the secret, which must not reach the code behind; undefined if it did not come from the gateway.
export function fromGateway(request: Request): Request | undefined {
  const given = request.headers.get(HEADER) ?? "";
  if (secret === "" || given.length !== secret.length) return undefined;
  let difference = 0;
  for (let at = 0; at < secret.length; at++) difference |= secret.charCodeAt(at) ^ given.charCodeAt(at);
  if (difference !== 0) return undefined;
  const headers = new Headers(request.headers);
  headers.delete(HEADER);
  return new Request(request, { headers });
}

// Reports the port that the system assigned. Nobody else can forge the line: it begins with this start's random word.
const word = Deno.env.get("TRADECOPIER_LISTENING") ?? "";
Deno.env.delete("TRADECOPIER_LISTENING");
export const tellPort = ({ port }: { readonly port: number }): void => console.info(`${word} ${port}`);

export const refuse = (status: number, code: string, message: string): Response =>
  Response.json({ code, message }, { status });
