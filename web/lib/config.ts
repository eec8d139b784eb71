/** The API's address. The page is static, so it reads GET /config.json from its own server. */
export type Config = {
  url: string;
  publishableKey: string;
  /** Only a temporary demo stack provides a login, and only to its own page. */
  demoLogin: { email: string; password: string } | null;
};

const TIMEOUT_MS = 10_000;
/** `next dev` has no gateway; set this to the config.json of a running stack. */
const CONFIG_URL = process.env.NEXT_PUBLIC_CONFIG_URL ?? "/config.json";

/** Fetches and validates the configuration. Throws an Error that names what is missing. */
export async function loadConfig(): Promise<Config> {
  const answer = await fetch(CONFIG_URL, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) }).catch(
    () => null,
  );
  if (!answer)
    throw new Error(`${CONFIG_URL} could not be read: the server does not answer. Is the stack still running?`);
  if (!answer.ok) throw new Error(`${CONFIG_URL} could not be read: the server answered ${answer.status}.`);
  const said: unknown = await answer.json().catch(() => null);
  const url = text(said, "url");
  const publishableKey = text(said, "publishable_key");
  if (!url || !publishableKey)
    throw new Error(`${CONFIG_URL} must contain "url" and "publishable_key" of the project.`);
  const login = isRecord(said) ? said["demo_login"] : null;
  const email = text(login, "email");
  const password = text(login, "password");
  return { url, publishableKey, demoLogin: email && password ? { email, password } : null };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}

function text(value: unknown, key: string): string | null {
  const found = isRecord(value) ? value[key] : null;
  return typeof found === "string" && found !== "" ? found : null;
}
