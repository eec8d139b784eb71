"use client";

import { useEffect, useState } from "react";
import { Board } from "../components/board";
import { Notice } from "../components/notice";
import { SignIn } from "../components/sign-in";
import { type Config, loadConfig } from "../lib/config";
import { connect, type Project, type User, watchUser } from "../lib/queries";

type Place = { config: Config; project: Project };

/** The application: loads the configuration and the session, then shows the sign-in form or the board. */
export default function Page() {
  const [place, setPlace] = useState<Place | null>(null);
  const [failure, setFailure] = useState<string | null>(null);
  const [user, setUser] = useState<User | null | undefined>(undefined);
  const [attempt, setAttempt] = useState(0);

  // biome-ignore lint/correctness/useExhaustiveDependencies: the button requests another attempt
  useEffect(() => {
    let wanted = true;
    setFailure(null);
    loadConfig()
      .then((config) => wanted && setPlace({ config, project: connect(config) }))
      .catch((error: unknown) => wanted && setFailure(error instanceof Error ? error.message : String(error)));
    return () => {
      wanted = false;
    };
  }, [attempt]);

  useEffect(() => (place ? watchUser(place.project, setUser) : undefined), [place]);

  if (failure) {
    return (
      <Notice
        tone="bad"
        title="This page cannot find its Supabase project"
        text={failure}
        action="Try again"
        onAction={() => setAttempt(attempt + 1)}
      />
    );
  }
  if (!place || user === undefined)
    return <Notice tone="idle" title="Loading" text="Loading the configuration and your session." />;
  if (!user) return <SignIn project={place.project} demo={place.config.demoLogin} />;
  return <Board key={user.id} project={place.project} user={user} />;
}
