import type { Context } from "hono";
import { HTTPException } from "hono/http-exception";
import type { ContentfulStatusCode } from "hono/utils/http-status";

/** A refusal with a code of docs/errors.md. `message` says what happened to what, `hint` what to do. */
export class Problem extends Error {
  constructor(
    readonly status: ContentfulStatusCode,
    readonly code: string,
    message: string,
    readonly hint: string,
    readonly retryAfterSeconds?: number,
  ) {
    super(message);
  }
}

/** The answer to every failure: `{"code","message","hint"}`. Of an unexpected error only the name is logged (TC141). */
export function answerProblem(error: Error, context: Context): Response {
  const problem = asProblem(error);
  if (problem.retryAfterSeconds !== undefined) {
    context.header("Retry-After", String(problem.retryAfterSeconds));
  }
  return context.json({ code: problem.code, message: problem.message, hint: problem.hint }, problem.status);
}

export function asProblem(error: Error): Problem {
  if (error instanceof Problem) return error;
  if (error instanceof HTTPException) {
    return new Problem(
      error.status,
      "TC001",
      error.message || "the request was refused",
      "Send a JSON object as documented.",
    );
  }
  // the message may quote the request and its secrets, so only the kind of error is logged
  console.error(JSON.stringify({ event: "function_failed", error: error.name }));
  return unavailable("the request could not be completed");
}

/** A service behind the function did not answer. Nothing was changed, or the change was undone. */
export function unavailable(message: string): Problem {
  return new Problem(503, "TC141", message, "Wait a few seconds and try again.", 5);
}
