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

/** The text of an empty panel: why it is empty, and what will appear. */
export function Empty({ children }: Readonly<{ children: ReactNode }>) {
  return <p className="empty">{children}</p>;
}
