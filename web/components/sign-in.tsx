"use client";

import { type FormEvent, useState } from "react";
import { type Project, signIn } from "../lib/queries";
import { Icon } from "./tone";

type Props = { project: Project; demo: { email: string; password: string } | null };

export function SignIn({ project, demo }: Readonly<Props>) {
  const [email, setEmail] = useState("");
  const [password, setPassword] = useState("");
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<string | null>(null);

  const enter = async (withEmail: string, withPassword: string) => {
    setBusy(true);
    setFailure(null);
    const said = await signIn(project, withEmail.trim(), withPassword);
    setBusy(false);
    setFailure(said); // signed in: the page shows the board instead
  };
  const onSubmit = (event: FormEvent) => {
    event.preventDefault();
    void enter(email, password);
  };

  return (
    <main className="alone">
      <div className="card">
        <h1>Trade copier</h1>
        <form onSubmit={onSubmit}>
          <label htmlFor="email">E-mail</label>
          <input
            id="email"
            type="email"
            autoComplete="username"
            required
            value={email}
            onChange={(event) => setEmail(event.target.value)}
          />
          <label htmlFor="password">Password</label>
          <input
            id="password"
            type="password"
            autoComplete="current-password"
            required
            value={password}
            onChange={(event) => setPassword(event.target.value)}
          />
          <div role="alert" className="failure">
            {failure ? (
              <>
                <Icon tone="bad" /> {failure}
              </>
            ) : null}
          </div>
          <button type="submit" disabled={busy}>
            {busy ? "Signing in …" : "Sign in"}
          </button>
        </form>
        {demo ? (
          <section className="demo" aria-label="Demo login">
            <p>This is a demo. Its data and this login are deleted when it stops.</p>
            <p>
              <code>{demo.email}</code> <code>{demo.password}</code>
            </p>
            <button
              type="button"
              className="quiet"
              disabled={busy}
              onClick={() => void enter(demo.email, demo.password)}
            >
              Sign in to the demo
            </button>
          </section>
        ) : null}
      </div>
    </main>
  );
}
