/** What the pages have in common: elements, the connection as people see it, and the door where a name is given. */

import { type Client, connect } from "greenroom";

/** The element with this id. */
export function byId<T extends Element = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no #${id}`);
  return found as unknown as T;
}

/** A new element. Whatever is in `text` is shown as text: names are of other people. */
export function make(tag: string, className = "", text = ""): HTMLElement {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** The session server that this page is from. Others of the cluster are learned from it. */
const server = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}`;

/** What is wrong, in words for people. */
export const words = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Checks in, and shows on the page how the connection is. */
export async function checkIn(name: string, keep = true): Promise<Client> {
  const badge = byId("badge");
  const show = (state: "online" | "waiting" | "closed", text: string): void => {
    badge.dataset["state"] = state;
    badge.textContent = text;
  };
  show("waiting", "connecting…");
  // A name is a guest of its own: who comes back with it is the same one, also after a reload.
  const storage = keep ? { prefix: `greenroom/${name}` } : { tab: null };
  const client = await connect({ servers: [server], auth: { scheme: "guest", name }, storage }).catch((error: unknown) => {
    show("closed", "not connected");
    throw error;
  });
  const tell = (): void => {
    if (client.status === "resuming") show("waiting", "reconnecting…");
    else if (client.status !== "closed") show("online", "connected");
  };
  tell();
  client.on("status", tell);
  client.on("ended", (why) => show("closed", why.code === "superseded" ? "open in another tab" : why.message));
  return client;
}

/** Asks for a name until `enter` lets it in. Who was here before in this tab goes in at once. */
export function door(enter: (name: string) => Promise<void>): { open(trouble: string): void } {
  const [form, input, trouble] = [byId<HTMLFormElement>("door-form"), byId<HTMLInputElement>("name"), byId("trouble")];
  const button = form.querySelector("button")!;
  const open = (text: string): void => {
    trouble.textContent = text;
    byId("door").classList.remove("hidden");
    button.disabled = false;
    input.focus();
  };
  const go = async (): Promise<void> => {
    const name = input.value.trim();
    if (name === "") return open("What shall the others call you?");
    button.disabled = true;
    try {
      await enter(name);
      sessionStorage.setItem("name", name);
      localStorage.setItem("name", name);
      byId("door").classList.add("hidden");
    } catch (error) {
      open(words(error));
    }
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    void go();
  });
  input.value = sessionStorage.getItem("name") ?? localStorage.getItem("name") ?? "";
  if (sessionStorage.getItem("name") !== null) void go();
  else open("");
  return { open };
}
