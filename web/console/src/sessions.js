/** The dialog that lists the sessions of the account, and ends one or all of them. */

import { element, guard, listItem } from "./page.js";

/** @typedef {import("@natskit/client").SignedIn} SignedIn */

const dialog = () => element("sessions-dialog", HTMLDialogElement);

export class Sessions {
  #client;

  /** @param {() => import("@natskit/client").Client} client */
  constructor(client) {
    this.#client = client;
    element("sessions-button").addEventListener("click", () => void this.#open());
    this.#onClick("end-other-sessions", async () => {
      await client().callHub("end_all_sessions", { keep_this: true });
      await this.#read();
    });
    this.#onClick("end-all-sessions", async () => void (await client().callHub("end_all_sessions")));
    element("sessions-close").addEventListener("click", () => this.close());
  }

  close() {
    dialog().close();
  }

  async #open() {
    element("sessions").replaceChildren();
    dialog().showModal();
    await guard("sessions-error", () => this.#read());
  }

  async #read() {
    const sessions = await this.#client().callHub("list_sessions");
    element("sessions").replaceChildren(...sessions.map((one) => this.#item(one)));
    element("end-other-sessions", HTMLButtonElement).disabled = sessions.length < 2;
  }

  /** @param {SignedIn} one */
  #item(one) {
    const since = `${one.address}, since ${day(one.created_at)}, last seen ${day(one.last_seen)}`;
    const item = listItem(one.device, since);
    if (one.mine) {
      item.append("this browser");
    } else {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "End";
      button.setAttribute("aria-label", `End the session of ${one.device}`);
      button.addEventListener(
        "click",
        () =>
          void guard("sessions-error", async () => {
            await this.#client().callHub("end_session", { session_id: one.session_id });
            await this.#read();
          }),
      );
      item.append(button);
    }
    return item;
  }

  /** @param {string} button @param {() => Promise<void>} action */
  #onClick(button, action) {
    element(button).addEventListener("click", () => void guard("sessions-error", action, button));
  }
}

/** @param {string} time */
function day(time) {
  return new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
