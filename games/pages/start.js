// Built from games/pages/src/start.ts by games/pages/build.mjs.

// src/start.ts
import { all } from "/greenroom.js";

// src/page.ts
import { connect } from "/greenroom.js";
function byId(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no #${id}`);
  return found;
}
var server = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}`;
var words = (error) => error instanceof Error ? error.message : String(error);
async function checkIn(name, keep = true) {
  const badge = byId("badge");
  const show = (state, text) => {
    badge.dataset["state"] = state;
    badge.textContent = text;
  };
  show("waiting", "connecting…");
  const storage = keep ? { prefix: `greenroom/${name}` } : { tab: null };
  const client = await connect({ servers: [server], auth: { scheme: "guest", name }, storage }).catch((error) => {
    show("closed", "not connected");
    throw error;
  });
  const tell = () => {
    if (client.status === "resuming") show("waiting", "reconnecting…");
    else if (client.status !== "closed") show("online", "connected");
  };
  tell();
  client.on("status", tell);
  client.on("ended", (why) => show("closed", why.code === "superseded" ? "open in another tab" : why.message));
  return client;
}

// src/start.ts
var plural = (count, one) => `${count} ${one}${count === 1 ? "" : "s"}`;
try {
  const client = await checkIn("visitor", false);
  await client.watch("arena", all(), (_, current) => {
    const players = [...current.values()].reduce((sum, { seatsTaken }) => sum + seatsTaken, 0);
    const arenas = plural(current.size, "arena");
    byId("arena-count").textContent = players === 0 ? "nobody is in yet: be the first" : `${plural(players, "player")} in ${arenas}`;
  });
  await client.watch("duel", all(), (_, current) => {
    const count = (phase) => [...current.values()].filter(({ meta }) => meta["phase"] === phase).length;
    const [waiting, playing] = [count("waiting"), count("playing")];
    byId("duel-count").textContent = waiting + playing === 0 ? "nobody waits: open a duel" : `${waiting} waiting for an opponent, ${playing} being played`;
  });
} catch (error) {
  byId("badge").textContent = words(error);
}
