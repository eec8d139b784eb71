import { type ReactNode, useId } from "react";

type Props = { title: string; aside?: ReactNode; children: ReactNode; className?: string };

export function Panel({ title, aside, children, className = "" }: Readonly<Props>) {
  const id = useId();
  return (
    <section className={`panel ${className}`} aria-labelledby={id}>
      <div className="head">
        <h2 id={id}>{title}</h2>
        <div className="aside">{aside}</div>
      </div>
      {children}
    </section>
  );
}

/** Nothing to show is a state of its own: it says why, and what comes next. */
export function Empty({ children }: Readonly<{ children: ReactNode }>) {
  return <p className="empty">{children}</p>;
}
