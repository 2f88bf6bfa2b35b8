// Built from games/pages/src/duel.ts by games/pages/build.mjs.

// src/duel.ts
import { field } from "/greenroom.js";

// src/page.ts
import { connect } from "/greenroom.js";
function byId(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no #${id}`);
  return found;
}
function make(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}
var server = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}`;
var words = (error) => error instanceof Error ? error.message : String(error);
async function checkIn(name, keep = true) {
  const badge = byId("badge");
  const show2 = (state, text) => {
    badge.dataset["state"] = state;
    badge.textContent = text;
  };
  show2("waiting", "connecting…");
  const storage = keep ? { prefix: `greenroom/${name}` } : { tab: null };
  const client2 = await connect({ servers: [server], auth: { scheme: "guest", name }, storage }).catch((error) => {
    show2("closed", "not connected");
    throw error;
  });
  const tell = () => {
    if (client2.status === "resuming") show2("waiting", "reconnecting…");
    else if (client2.status !== "closed") show2("online", "connected");
  };
  tell();
  client2.on("status", tell);
  client2.on("ended", (why) => show2("closed", why.code === "superseded" ? "open in another tab" : why.message));
  return client2;
}
function door(enter) {
  const [form, input, trouble] = [byId("door-form"), byId("name"), byId("trouble")];
  const button = form.querySelector("button");
  const open = (text) => {
    trouble.textContent = text;
    byId("door").classList.remove("hidden");
    button.disabled = false;
    input.focus();
  };
  const go = async () => {
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

// src/duel.ts
var CARDS = {
  Strike: { says: "4 damage", tint: "#ff8a5c", strokes: "M20 4 9 15M20 4l-1 5L11 17M20 4l-5 1L7 13M5 14l5 5M7.500 16.500 4 20" },
  Pierce: { says: "3 damage, past any shield", tint: "#ff6f6f", strokes: "M3 12h15M14 7l6 5-6 5M3 8l3 4-3 4M8 9v6" },
  Guard: { says: "4 shield, up to 8", tint: "#6db7ff", strokes: "M12 3l8 3v6c0 4.500-3.400 7.800-8 9-4.600-1.200-8-4.500-8-9V6zM12 7v10" },
  Mend: { says: "4 health, up to 20", tint: "#4be3a4", strokes: "M12 20s-8-4.700-8-10.500A4.500 4.500 0 0 1 12 7a4.500 4.500 0 0 1 8 2.500C20 15.300 12 20 12 20zM12 10v5M9.500 12.500h5" },
  Leech: { says: "2 damage, 2 health", tint: "#ff7fb0", strokes: "M12 3c3.500 4.500 6 7.600 6 11a6 6 0 0 1-12 0c0-3.400 2.500-6.500 6-11zM9.500 14.500a2.600 2.600 0 0 0 2.500 2.500" },
  Focus: { says: "Your next damage counts twice", tint: "#f4bd5b", strokes: "M12 5a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM12 2v5M12 17v5M2 12h5M17 12h5M12 11.500v1" },
  Venom: { says: "1 damage before each of 3 turns", tint: "#b5e06a", strokes: "M8 3h8M9.500 3v6L5 17.500A2.300 2.300 0 0 0 7 21h10a2.300 2.300 0 0 0 2-3.500L14.500 9V3M7.500 14h9M11 17.500h.100M14 16.500h.100" }
};
var [HEALTH, SHIELD] = [20, 8];
var client;
var lobby = null;
var room = null;
var turn = { number: -1, began: 0 };
Object.assign(window, { duel: { get room() {
  return room;
} } });
function sign(card) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const how = { viewBox: "0 0 24 24", fill: "none", stroke: "currentColor", "stroke-width": "1.500", "stroke-linecap": "round", "stroke-linejoin": "round" };
  for (const [name, value] of Object.entries(how)) svg.setAttribute(name, value);
  path.setAttribute("d", CARDS[card].strokes);
  svg.append(path);
  return svg;
}
function face(tag, card) {
  const made = make(tag, "card");
  made.style.setProperty("--tint", CARDS[card].tint);
  made.append(sign(card), make("h3", "", card), make("p", "", CARDS[card].says));
  return made;
}
function chip(card, text) {
  const made = make("span", "chip");
  made.style.setProperty("--tint", CARDS[card].tint);
  made.append(sign(card), text);
  return made;
}
function fan(place, cards) {
  cards.forEach((card, at) => card.style.setProperty("--lift", String(at - (cards.length - 1) / 2)));
  place.replaceChildren(...cards);
}
function only(shown) {
  byId("lobby").classList.toggle("hidden", shown !== "lobby");
  byId("table").classList.toggle("hidden", shown !== "table");
  byId("leave").classList.toggle("hidden", shown !== "table");
}
async function enterLobby(trouble = "") {
  room = null;
  sessionStorage.removeItem("duel");
  only("lobby");
  byId("lobby-trouble").textContent = trouble;
  lobby ??= await client.watch("duel", field("phase").eq("waiting"), (event, current) => {
    if (event.type === "ended") lobby = null;
    else wait([...current.values()]);
  });
  const { members, ranks } = await client.rank("duel_wins", { limit: 5 }).catch(() => ({ members: 0, ranks: [] }));
  byId("members").textContent = members === 0 ? "nobody yet" : "";
  const rows = ranks.map(({ rank, name, score }) => {
    const row = make("li");
    row.append(make("i", "", String(rank)), make("span", "", name), make("b", "", String(score)));
    return row;
  });
  byId("ranks").replaceChildren(...rows);
}
function wait(duels) {
  byId("nobody").classList.toggle("hidden", duels.length > 0);
  const rows = duels.sort((a, b) => a.createdMs - b.createdMs).map(({ instance, createdMs, meta }) => {
    const row = make("li");
    const [name, since] = [String(meta["host"] || meta["guest"] || "somebody"), new Date(createdMs)];
    const who = make("b", "", name);
    who.append(make("small", "", `since ${since.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })}`));
    const join = make("button", "button small", "Join");
    join.addEventListener("click", () => void sit(client.join(instance)));
    row.append(make("span", "face", [...name][0].toUpperCase()), who, join);
    return row;
  });
  byId("waiting").replaceChildren(...rows);
}
async function sit(seat) {
  let taken;
  try {
    taken = await seat;
  } catch (error) {
    return enterLobby(words(error));
  }
  room = taken;
  sessionStorage.setItem("duel", taken.instance);
  turn = { number: -1, began: 0 };
  byId("log").replaceChildren();
  byId("played").replaceChildren();
  byId("stored").textContent = "";
  only("table");
  taken.onState((state) => show(state, taken.seat));
  taken.onPrivateState((hand) => show(taken.state, taken.seat, hand));
  taken.onMessage((message) => happen(message, taken));
  taken.onLeave(({ code, message }) => {
    if (room === taken) void enterLobby(code === "left" ? "" : message);
  });
}
function show(state, seat, hand = room?.privateState) {
  const mine = state.turn === seat;
  const table = byId("table");
  table.classList.toggle("mine", mine);
  if (state.turns !== turn.number) turn = { number: state.turns, began: performance.now() };
  side(byId("me"), state.fighters[seat]);
  side(byId("them"), state.fighters[1 - seat]);
  const them = state.fighters[1 - seat];
  const other = them?.name ?? "an opponent";
  byId("turn").textContent = state.phase === "waiting" ? "Waiting for an opponent…" : mine ? "Your turn" : `${other} thinks…`;
  fan(document.querySelector("#them .backs"), Array.from({ length: them?.hand ?? 0 }, () => make("div", "back")));
  const cards = (state.phase === "waiting" ? [] : hand ?? []).map((card, at) => {
    const made = face("button", card);
    made.disabled = !mine;
    made.addEventListener("click", () => void play(at));
    return made;
  });
  fan(byId("hand"), cards);
  byId("over").classList.toggle("hidden", state.phase !== "over");
  if (state.phase !== "over") return;
  const verdict = state.winner === null ? "A draw" : state.winner === seat ? "Victory" : "Defeat";
  byId("over").className = state.winner === null ? "" : state.winner === seat ? "won" : "lost";
  byId("over-eyebrow").textContent = `after ${state.turns} turns against ${other}`;
  byId("verdict").textContent = verdict;
}
function side(place, fighter) {
  const { name, health, shield, focused, venom } = fighter ?? { name: "", health: 0, shield: 0, focused: false, venom: 0 };
  const part = (selector) => place.querySelector(selector);
  part(".who b").textContent = name;
  part(".health").classList.toggle("low", health <= 6);
  part(".health").classList.toggle("hidden", fighter === void 0);
  part(".health i").style.width = `${100 * health / HEALTH}%`;
  part(".health em").style.width = `${100 * shield / SHIELD}%`;
  part(".health span").textContent = shield > 0 ? `${health} + ${shield}` : `${health}`;
  const chips = [
    ...shield > 0 ? [chip("Guard", String(shield))] : [],
    ...focused ? [chip("Focus", "×2")] : [],
    ...venom > 0 ? [chip("Venom", String(venom))] : []
  ];
  part(".chips").replaceChildren(...chips);
}
async function play(at) {
  for (const card of byId("hand").querySelectorAll("button")) card.disabled = true;
  try {
    await room?.call({ Play: at });
  } catch (error) {
    log(words(error));
  }
}
function happen(message, { state, seat }) {
  if ("Result" in message) {
    byId("stored").textContent = `the result is stored as ${message.Result[0]}`;
    return;
  }
  const [by, card, damage, blocked] = message.Played;
  const [who, whom] = [state?.fighters[by]?.name ?? "", state?.fighters[1 - by]?.name ?? ""];
  const done = [damage > 0 ? `${damage} damage to ${whom}` : "", blocked > 0 ? `${blocked} blocked` : ""].filter((text) => text !== "");
  log(": " + [card, ...done].join(", "), who);
  const played = face("div", card);
  played.style.setProperty("--from", by === seat ? "60px" : "-60px");
  byId("played").replaceChildren(played);
  if (damage === 0) return;
  const hurt = byId(by === seat ? "them" : "me");
  hurt.classList.remove("hurt");
  void hurt.offsetWidth;
  hurt.classList.add("hurt");
}
function log(text, who = "") {
  const line = make("li");
  line.append(...who === "" ? [] : [make("b", "", who)], text);
  byId("log").append(line);
  while (byId("log").childElementCount > 6) byId("log").firstElementChild.remove();
}
function tick(now) {
  requestAnimationFrame(tick);
  const state = room?.state;
  if (state === void 0 || state.phase !== "playing") return byId("clock").setAttribute("stroke-dashoffset", "100");
  const spent = (now - turn.began) / 1e3 / state.turn_secs;
  byId("clock").setAttribute("stroke-dashoffset", String(Math.min(100, Math.max(0, 100 * spent))));
  byId("table").classList.toggle("hurry", spent > 0.75);
}
async function leave() {
  const left = room;
  await enterLobby();
  await left?.leave().catch(() => void 0);
}
byId("create").addEventListener("click", () => void sit(client.create("duel").then((id) => client.join(id))));
byId("leave").addEventListener("click", () => void leave());
byId("back").addEventListener("click", () => void leave());
byId("rematch").addEventListener("click", () => {
  const before = room;
  const key = `rematch/${before?.instance}`;
  void before?.leave().catch(() => void 0);
  void sit(client.joinOrCreate("duel", { key, private: true }));
});
var entrance = door(async (name) => {
  client = await checkIn(name);
  client.on("ended", ({ message }) => {
    lobby = null;
    entrance.open(message);
  });
  const before = sessionStorage.getItem("duel");
  await (before === null ? enterLobby() : sit(client.join(before)));
});
requestAnimationFrame(tick);
