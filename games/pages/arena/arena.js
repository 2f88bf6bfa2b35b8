// Built from games/pages/src/arena.ts by games/pages/build.mjs.

// src/arena.ts
import { FullError } from "/greenroom.js";

// src/controls.ts
var DIRECTIONS = {
  KeyW: [0, -1],
  ArrowUp: [0, -1],
  KeyS: [0, 1],
  ArrowDown: [0, 1],
  KeyA: [-1, 0],
  ArrowLeft: [-1, 0],
  KeyD: [1, 0],
  ArrowRight: [1, 0]
};
var keys = /* @__PURE__ */ new Set();
var sticks = /* @__PURE__ */ new Map();
var mouse = { x: 0, y: 0, isDown: false };
var isTouch = matchMedia("(hover: none)").matches;
var run = [0, 0];
function unit(x, y) {
  const length = Math.hypot(x, y);
  return length === 0 ? [0, 0] : [x / length, y / length];
}
var thumb = (isAim) => (
  // One that rests where it came down says nothing.
  [...sticks.values()].find(({ base, at, isAim: aims }) => aims === isAim && Math.hypot(at.x - base.x, at.y - base.y) > 12)
);
var isFiring = () => mouse.isDown || keys.has("Space") || thumb(true) !== void 0;
function aim(from) {
  const stick = thumb(true);
  if (stick !== void 0) return unit(stick.at.x - stick.base.x, stick.at.y - stick.base.y);
  if (mouse.x !== 0 || mouse.y !== 0) return unit(mouse.x - from.x, mouse.y - from.y);
  return run[0] === 0 && run[1] === 0 ? [1, 0] : run;
}
function steer() {
  const held = [...keys].flatMap((key) => DIRECTIONS[key] === void 0 ? [] : [DIRECTIONS[key]]);
  const [x, y] = held.reduce(([x2, y2], [dx, dy]) => [x2 + dx, y2 + dy], [0, 0]);
  let next = unit(x, y);
  const stick = thumb(false);
  if (stick !== void 0) {
    const turn = Math.round(Math.atan2(stick.at.y - stick.base.y, stick.at.x - stick.base.x) * 8 / Math.PI) * Math.PI / 8;
    next = [Math.cos(turn), Math.sin(turn)];
  }
  if (next[0] !== run[0] || next[1] !== run[1]) run = next;
}
function paint(pen2) {
  const circle2 = ({ x, y }, radius) => {
    pen2.beginPath();
    pen2.arc(x, y, radius, 0, 2 * Math.PI);
  };
  pen2.lineWidth = 2;
  for (const { base, at, isAim } of sticks.values()) {
    const [dx, dy] = unit(at.x - base.x, at.y - base.y);
    const far = Math.min(44, Math.hypot(at.x - base.x, at.y - base.y));
    pen2.strokeStyle = pen2.fillStyle = isAim ? "rgb(255 111 111 / 60%)" : "rgb(231 239 236 / 40%)";
    circle2(base, 56);
    pen2.stroke();
    circle2({ x: base.x + dx * far, y: base.y + dy * far }, 25);
    pen2.fill();
  }
  if (!isTouch || sticks.size > 0) return;
  pen2.font = "600 12px system-ui, sans-serif";
  pen2.textAlign = "center";
  for (const [x, text] of [[innerWidth * 0.24, "run"], [innerWidth * 0.76, "shoot"]]) {
    pen2.strokeStyle = pen2.fillStyle = "rgb(231 239 236 / 26%)";
    circle2({ x, y: innerHeight - 92 }, 44);
    pen2.stroke();
    pen2.fillText(text, x, innerHeight - 88);
  }
}
function touch({ pointerId, clientX, clientY }) {
  const at = { x: clientX, y: clientY };
  const there = sticks.get(pointerId);
  if (there !== void 0) there.at = at;
  else sticks.set(pointerId, { base: at, at, isAim: at.x > innerWidth / 2 });
  steer();
}
function listen(field) {
  addEventListener("keydown", (event) => {
    if (event.target instanceof HTMLInputElement || event.repeat) return;
    if (event.code in DIRECTIONS || event.code === "Space") event.preventDefault();
    keys.add(event.code);
    steer();
  });
  addEventListener("keyup", ({ code }) => {
    keys.delete(code);
    steer();
  });
  addEventListener("blur", () => {
    keys.clear();
    sticks.clear();
    mouse.isDown = false;
    steer();
  });
  field.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch") touch(event);
    else Object.assign(mouse, { x: event.clientX, y: event.clientY, isDown: true });
  });
  addEventListener("pointermove", (event) => {
    if (event.pointerType !== "touch") Object.assign(mouse, { x: event.clientX, y: event.clientY });
    else if (sticks.has(event.pointerId)) touch(event);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    addEventListener(end, ({ pointerId, pointerType }) => {
      if (pointerType !== "touch") mouse.isDown = false;
      if (sticks.delete(pointerId)) steer();
    });
  }
  field.addEventListener("contextmenu", (event) => event.preventDefault());
}

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
  const show = (state, text) => {
    badge.dataset["state"] = state;
    badge.textContent = text;
  };
  show("waiting", "connecting…");
  const storage = keep ? { prefix: `greenroom/${name}` } : { tab: null };
  const client2 = await connect({ servers: [server], auth: { scheme: "guest", name }, storage }).catch((error) => {
    show("closed", "not connected");
    throw error;
  });
  const tell = () => {
    if (client2.status === "resuming") show("waiting", "reconnecting…");
    else if (client2.status !== "closed") show("online", "connected");
  };
  tell();
  client2.on("status", tell);
  client2.on("ended", (why) => show("closed", why.code === "superseded" ? "open in another tab" : why.message));
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

// src/arena.ts
var [TICKS, SPEED, SHOT_LENGTH, SHOTS] = [20, 10, 30, 5];
var BEHIND = 2;
var seen = () => Math.min(innerWidth, innerHeight) < 600 ? 30 : 42;
var TRIGGER = 190;
var COLOURS = ["#4be3a4", "#ff8a5c", "#6db7ff", "#f4bd5b", "#b69bff", "#ff7fb0", "#5fe0e6", "#c7e36a"];
var colour = (seat) => COLOURS[Number(seat) % COLOURS.length];
var canvas = byId("field");
var pen = canvas.getContext("2d", { alpha: false });
var effects = [];
var client = null;
var room = null;
var states = [];
var ahead = -Infinity;
var own = null;
var trail = [];
var pull = { x: 0, y: 0 };
var stands = 0;
var camera = { x: 50, y: 50, scale: 10 };
var said = run;
var shotAt = 0;
var drawn = {};
var frames = [];
var onScreen = ({ x, y }) => ({
  x: (x - camera.x) * camera.scale + innerWidth / 2,
  y: (y - camera.y) * camera.scale + innerHeight / 2
});
var inside = { drawn, frames, onScreen: (seat) => onScreen(drawn[seat]), get client() {
  return client;
}, get room() {
  return room;
} };
Object.assign(window, { arena: inside });
function take(state, tick) {
  const last = states.at(-1);
  if (last !== void 0 && tick < last.tick) states = [];
  if (last !== void 0 && tick > last.tick + 1) states.push({ tick: tick - 1, players: last.players });
  states.push({ tick, players: state.players });
  states.splice(0, states.length - 24);
  const early = tick - performance.now() / 1e3 * TICKS;
  ahead = Math.abs(early - ahead) > TICKS ? early : Math.max(early, ahead - 2e-3);
  lead(state.players[room.seat]);
  list(state.players);
}
function lead(there) {
  byId("fallen").classList.toggle("hidden", there === void 0 || there.hp > 0);
  if (there === void 0) return;
  const then = performance.now() - (room.latency ?? 0) - 1e3 / TICKS;
  const was = trail.find(({ at }) => at >= then) ?? own;
  const [x, y] = [there.x - (was?.x ?? 0), there.y - (was?.y ?? 0)];
  if (own === null || was === null || Math.hypot(x, y) > 5) {
    [own, pull, trail] = [{ x: there.x, y: there.y }, { x: 0, y: 0 }, []];
  } else pull = { x, y };
}
function list(players) {
  const isOwn = (seat) => Number(seat) === room.seat;
  const best = Object.entries(players).sort(([, a], [, b]) => b.score - a.score);
  const shown = best.filter(([seat], at) => at < 7 || isOwn(seat)).slice(0, 8);
  const rows = shown.map(([seat, { name, score }]) => {
    const row = make("li", isOwn(seat) ? "own" : "");
    const dot = make("i");
    dot.style.setProperty("--colour", colour(seat));
    row.append(dot, make("span", "", name), make("b", "", String(score)));
    return row;
  });
  byId("scores").replaceChildren(...rows);
}
function happen(message) {
  if ("Shot" in message) {
    const { by: by2, toward, hit } = message.Shot;
    const from = drawn[by2];
    const at2 = hit === null ? null : drawn[hit];
    if (from === void 0) return;
    const to = at2 ?? { x: from.x + toward[0] * SHOT_LENGTH, y: from.y + toward[1] * SHOT_LENGTH };
    ray({ ...from }, { ...to }, colour(by2));
    if (hit !== null && at2 !== void 0) burst({ ...to }, colour(hit), 9, 2.6, 320);
    return;
  }
  const { seat, by } = message.Down;
  const at = drawn[seat];
  if (at !== void 0) burst({ ...at }, colour(seat), 22, 6, 700);
  const line = make("li");
  const name = (seat2) => make("b", "", room?.state?.players[seat2]?.name ?? "somebody");
  line.append(name(by), " took down ", name(seat));
  byId("feed").append(line);
  line.addEventListener("animationend", () => line.remove());
}
function ray(from, to, stroke) {
  const draw = (part) => {
    pen.strokeStyle = stroke;
    for (const thick of [0.9, 0.22]) {
      pen.globalAlpha = (1 - part) ** 1.5 * (thick > 0.5 ? 0.22 : 1);
      pen.lineWidth = thick * (1 - part) + 0.05;
      pen.beginPath();
      pen.moveTo(from.x + (to.x - from.x) * part * 0.6, from.y + (to.y - from.y) * part * 0.6);
      pen.lineTo(to.x, to.y);
      pen.stroke();
    }
  };
  effects.push({ since: performance.now(), lasts: 210, draw });
}
function burst(at, fill, count, reach, lasts) {
  const sparks = Array.from({ length: count }, (_, n) => ({
    angle: (n + Math.random()) / count * 2 * Math.PI,
    reach: reach * (0.4 + 0.6 * Math.random())
  }));
  const draw = (part) => {
    pen.globalAlpha = 1 - part;
    pen.fillStyle = pen.strokeStyle = fill;
    pen.lineWidth = 0.2 * (1 - part);
    circle(at, reach * (0.3 + 0.7 * part ** 0.5));
    pen.stroke();
    for (const spark of sparks) {
      const far = spark.reach * part ** 0.5;
      circle({ x: at.x + Math.cos(spark.angle) * far, y: at.y + Math.sin(spark.angle) * far }, 0.24 * (1 - part) + 0.05);
      pen.fill();
    }
  };
  effects.push({ since: performance.now(), lasts, draw });
}
function circle({ x, y }, radius, from = 0, to = 2 * Math.PI) {
  pen.beginPath();
  pen.arc(x, y, radius, from, to);
}
function between(tick) {
  const after = states.findIndex((state) => state.tick > tick);
  const [a, b] = after < 1 ? [states.at(after), states.at(after)] : [states[after - 1], states[after]];
  if (a === void 0 || b === void 0) return {};
  const part = a === b ? 0 : (tick - a.tick) / (b.tick - a.tick);
  return Object.fromEntries(
    Object.entries(b.players).map(([seat, player]) => {
      const before2 = a.players[seat] ?? player;
      const gap = Math.hypot(player.x - before2.x, player.y - before2.y) > 5;
      const mix = (from, to) => gap ? to : from + (to - from) * part;
      return [seat, { ...player, x: mix(before2.x, player.x), y: mix(before2.y, player.y) }];
    })
  );
}
var lights = /* @__PURE__ */ new Map();
function light(tint, { x, y }, radius, strength) {
  let there = lights.get(tint);
  if (there === void 0) {
    there = Object.assign(document.createElement("canvas"), { width: 128, height: 128 });
    const brush = there.getContext("2d");
    const fade = brush.createRadialGradient(64, 64, 0, 64, 64, 64);
    fade.addColorStop(0, tint);
    fade.addColorStop(0.35, `${tint}55`);
    fade.addColorStop(1, `${tint}00`);
    brush.fillStyle = fade;
    brush.fillRect(0, 0, 128, 128);
    lights.set(tint, there);
  }
  pen.globalAlpha = strength;
  pen.drawImage(there, x - radius, y - radius, 2 * radius, 2 * radius);
  pen.globalAlpha = 1;
}
function ground(size, width, height) {
  const [left, top] = [Math.max(0, camera.x - width / 2), Math.max(0, camera.y - height / 2)];
  const [right, bottom] = [Math.min(size, camera.x + width / 2), Math.min(size, camera.y + height / 2)];
  pen.fillStyle = "#0d1518";
  pen.beginPath();
  pen.rect(left, top, right - left, bottom - top);
  pen.fill();
  if (own !== null) {
    pen.save();
    pen.clip();
    light("#1d5a49", own, 26, 0.42);
    pen.restore();
  }
  for (const [step, stroke, thick] of [[5, "#17242a", 1], [25, "#22353c", 1.5]]) {
    pen.strokeStyle = stroke;
    pen.lineWidth = thick / camera.scale;
    pen.beginPath();
    for (let x = Math.ceil(left / step) * step; x <= right; x += step) pen.moveTo(x, top), pen.lineTo(x, bottom);
    for (let y = Math.ceil(top / step) * step; y <= bottom; y += step) pen.moveTo(left, y), pen.lineTo(right, y);
    pen.stroke();
  }
  for (const [thick, stroke] of [[1.6, "rgb(75 227 164 / 9%)"], [0.7, "rgb(75 227 164 / 16%)"], [0.18, "#4be3a4"]]) {
    pen.strokeStyle = stroke;
    pen.lineWidth = thick;
    pen.strokeRect(0, 0, size, size);
  }
}
function map(players, size) {
  const side = Math.min(150, innerWidth * 0.27);
  const [left, top] = [innerWidth - side - 16, isTouch ? 56 : innerHeight - side - 16];
  pen.fillStyle = "rgb(13 18 21 / 72%)";
  pen.strokeStyle = "#2f3e45";
  pen.lineWidth = 1;
  pen.beginPath();
  pen.roundRect(left, top, side, side, 10);
  pen.fill();
  pen.stroke();
  for (const [seat, { x, y, hp }] of Object.entries(players)) {
    const isOwn = Number(seat) === room?.seat;
    pen.globalAlpha = hp > 0 ? 1 : 0.3;
    pen.fillStyle = isOwn ? "#ffffff" : colour(seat);
    circle({ x: left + 6 + x / size * (side - 12), y: top + 6 + y / size * (side - 12) }, isOwn ? 3.4 : 2.4);
    pen.fill();
  }
  pen.globalAlpha = 1;
}
function figure(seat, { x, y, hp, name }) {
  const [isOwn, at, tint] = [Number(seat) === room?.seat, { x, y }, colour(seat)];
  if (hp > 0) light(tint, at, 4.4, 0.34);
  const [dx, dy] = isOwn && hp > 0 ? aimed(at) : [0, 0];
  const turn = dx === 0 && dy === 0 ? null : Math.atan2(dy, dx);
  if (turn !== null) {
    pen.strokeStyle = "rgb(231 239 236 / 14%)";
    pen.lineWidth = 0.1;
    pen.setLineDash([0.5, 0.7]);
    pen.beginPath();
    pen.moveTo(x + dx * 2.2, y + dy * 2.2);
    pen.lineTo(x + dx * SHOT_LENGTH, y + dy * SHOT_LENGTH);
    pen.stroke();
    pen.setLineDash([]);
  }
  pen.globalAlpha = hp > 0 ? 1 : 0.3;
  pen.fillStyle = tint;
  circle(at, hp > 0 ? 0.9 : 0.66);
  pen.fill();
  pen.lineWidth = 0.22;
  pen.strokeStyle = "#2a373c";
  circle(at, 1.34);
  pen.stroke();
  pen.strokeStyle = hp > 50 ? tint : hp > 25 ? "#f4bd5b" : "#ff6f6f";
  circle(at, 1.34, -Math.PI / 2, -Math.PI / 2 + hp / 100 * 2 * Math.PI);
  pen.stroke();
  if (turn !== null) {
    pen.strokeStyle = "#ffffff";
    pen.lineWidth = 0.26;
    circle(at, 1.82, turn - 0.36, turn + 0.36);
    pen.stroke();
    const shots = room.privateState?.shots ?? 0;
    for (let n = 0; n < SHOTS; n++) {
      pen.fillStyle = n < shots ? "#ffffff" : "#3b484d";
      circle({ x: x + (n - (SHOTS - 1) / 2) * 0.64, y: y + 2.6 }, 0.18);
      pen.fill();
    }
  }
  pen.fillStyle = isOwn ? "#ffffff" : "#b3c2bf";
  pen.font = `${isOwn ? 600 : 500} ${13 / camera.scale}px system-ui, sans-serif`;
  pen.textAlign = "center";
  pen.fillText(name.slice(0, 24), x, y - 2.3);
  pen.globalAlpha = 1;
}
var before = performance.now();
function frame(now) {
  requestAnimationFrame(frame);
  const begun = performance.now();
  const span = Math.min(0.1, (now - before) / 1e3);
  frames.push({ interval: now - before, work: 0 });
  frames.splice(0, frames.length - 1200);
  before = now;
  const ratio = Math.min(2, devicePixelRatio);
  const [width, height] = [innerWidth, innerHeight];
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
  }
  say();
  const size = room?.state?.size ?? 100;
  const players = between(begun / 1e3 * TICKS + ahead - BEHIND);
  move(players, size, span, begun);
  camera.scale = Math.min(width, height) / Math.min(seen(), size + 8);
  const follow = (at, half) => half * 2 > size + 8 ? size / 2 : Math.min(Math.max(at, half - 4), size + 4 - half);
  const [halfX, halfY] = [width / camera.scale / 2, height / camera.scale / 2];
  if (own !== null) [camera.x, camera.y] = [follow(own.x, halfX), follow(own.y, halfY)];
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.fillStyle = "#070a0b";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  const scale = camera.scale * ratio;
  pen.setTransform(scale, 0, 0, scale, canvas.width / 2 - camera.x * scale, canvas.height / 2 - camera.y * scale);
  pen.lineCap = "round";
  ground(size, halfX * 2, halfY * 2);
  for (const seat of Object.keys(drawn)) if (!(seat in players)) delete drawn[seat];
  for (const [seat, player] of Object.entries(players)) {
    drawn[seat] = { x: player.x, y: player.y };
    figure(seat, player);
  }
  effects = effects.filter(({ since, lasts }) => begun - since < lasts);
  for (const { since, lasts, draw } of effects) draw(Math.max(0, (begun - since) / lasts));
  pen.globalAlpha = 1;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  if (room !== null) map(players, size);
  if (room !== null) paint(pen);
  frames.at(-1).work = performance.now() - begun;
}
function say() {
  if (room === null || run === said) return;
  try {
    room.send({ Run: run });
    said = run;
    byId("hint").classList.add("gone");
  } catch (error) {
    if (!(error instanceof FullError)) throw error;
  }
}
var aimed = (at) => aim(onScreen(at));
function move(players, size, span, now) {
  const player = room === null ? void 0 : players[room.seat];
  const there = room?.state?.players[room.seat];
  if (room === null || own === null || there === void 0) return;
  if (there.hp > 0) {
    own.x = Math.min(size, Math.max(0, own.x + run[0] * SPEED * span));
    own.y = Math.min(size, Math.max(0, own.y + run[1] * SPEED * span));
  }
  if (run[0] !== 0 || run[1] !== 0) stands = now;
  else if (now - stands > 300) pull = { x: there.x - own.x, y: there.y - own.y };
  const part = 1 - Math.exp(-8 * span);
  for (const point of [own, ...trail]) {
    point.x += pull.x * part;
    point.y += pull.y * part;
  }
  pull = { x: pull.x * (1 - part), y: pull.y * (1 - part) };
  trail = [...trail.filter(({ at }) => at > now - 500), { ...own, at: now }];
  if (player !== void 0) Object.assign(player, { x: own.x, y: own.y, hp: there.hp });
  if (isFiring() && there.hp > 0 && (room.privateState?.shots ?? 0) > 0 && now - shotAt > TRIGGER) {
    shotAt = now;
    room.call({ Shoot: aimed(own) }).catch(() => void 0);
  }
}
var entrance = door(async (name) => {
  const mine = await checkIn(name);
  try {
    [states, own, trail] = [[], null, []];
    const key = new URLSearchParams(location.search).get("key");
    const options = key === null ? {} : { key, private: true };
    room = await mine.joinOrCreate("arena", options);
  } catch (error) {
    await mine.close();
    throw error;
  }
  client = mine;
  client.on("status", () => said = [0, 0]);
  room.onState(take);
  room.onMessage(happen);
  room.onLeave(({ message }) => {
    [room, said] = [null, [0, 0]];
    void mine.close();
    entrance.open(message);
  });
  canvas.focus();
});
listen(canvas);
requestAnimationFrame(frame);
