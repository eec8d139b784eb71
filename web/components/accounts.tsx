import { amount, plural } from "../lib/format";
import type { Account, BoardData } from "../lib/queries";
import { withoutCode } from "../lib/reasons";
import { accountTone } from "../lib/tone";
import { Age } from "./now";
import { Empty, Panel } from "./panel";
import { Status } from "./tone";

export function Accounts({ board }: Readonly<{ board: BoardData }>) {
  const { accounts, positions, copiers } = board;
  const open = Map.groupBy(positions, (position) => position.account_id);
  return (
    <Panel title="Accounts" aside={plural(accounts.length, "account")}>
      {accounts.length ? (
        <table>
          <thead>
            <tr>
              <th scope="col">Account</th>
              <th scope="col">Status</th>
              <th scope="col" className="wide">
                Copying
              </th>
              <th scope="col" className="number wide">
                Balance
              </th>
              <th scope="col" className="number">
                Equity
              </th>
              <th scope="col" className="number wide">
                Updated
              </th>
              <th scope="col" className="number wide">
                Open
              </th>
            </tr>
          </thead>
          <tbody>
            {accounts.map((account) => {
              const held = open.get(account.id) ?? [];
              return (
                <AccountRow
                  key={account.id}
                  account={account}
                  open={held.filter((position) => position.kind === "position").length}
                  pending={held.filter((position) => position.kind === "order").length}
                  leads={copiers.filter((copier) => copier.master_account_id === account.id).length}
                  follows={copiers.filter((copier) => copier.follower_account_id === account.id).length}
                />
              );
            })}
          </tbody>
        </table>
      ) : (
        <Empty>No account is connected yet. Accounts appear here as soon as you connect them.</Empty>
      )}
    </Panel>
  );
}

type Row = { account: Account; open: number; pending: number; leads: number; follows: number };

function AccountRow({ account, open, pending, leads, follows }: Readonly<Row>) {
  const role = [
    leads ? `master of ${plural(leads, "copier")}` : "",
    follows ? `follower of ${plural(follows, "master")}` : "",
  ].filter(Boolean);
  return (
    <tr>
      <th scope="row">
        {account.name}
        <span className="sub wide">
          {account.platform} · {account.mode} · {account.currency}
        </span>
        <span className="sub narrow">
          {account.currency} · {open} open{pending ? `, ${pending} pending` : ""}
        </span>
      </th>
      <td>
        <Status tone={accountTone(account.status, account.copy_state)}>
          {account.status === "weekend" ? "closed for the weekend" : account.status}
          {account.copy_state === "on" ? "" : `, ${account.copy_state}`}
        </Status>
        {account.status_reason ? <span className="sub">{withoutCode(account.status_reason)}</span> : null}
      </td>
      <td className="wide">{role.join(", ") || "–"}</td>
      <td className="number wide">{amount(account.balance)}</td>
      <td className="number">
        {amount(account.equity)}
        <span className="sub narrow">
          <Age at={account.funds_at} />
        </span>
      </td>
      <td className="number wide">
        <Age at={account.funds_at} />
      </td>
      <td className="number wide">
        {open}
        {pending ? <span className="sub">{pending} pending</span> : null}
      </td>
    </tr>
  );
}
