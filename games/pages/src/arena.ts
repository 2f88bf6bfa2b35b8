/**
 * The arena in a browser. Others are drawn as they were 100 ms ago, between two states that are there, so that they move
 * evenly however patches arrive; one's own player moves at once and is led back gently to where the server has it.
 */

import { type Client, FullError, type Room } from "greenroom";

import { aim, type Direction, isFiring, isTouch, listen, paint, type Point, run } from "./controls.js";
import { byId, checkIn, door, make } from "./page.js";

// The types of games/src/arena.rs, as MessagePack brings them.
type Player = { x: number; y: number; hp: number; score: number; name: string };
type State = { size: number; players: Record<string, Player> };
type Weapon = { shots: number; reload: number; running: [number, number] };
type In = { Run: [number, number] } | { Shoot: [number, number] };
type Out = { Shot: { by: number; toward: [number, number]; hit: number | null } } | { Down: { seat: number; by: number } };
type Reply = { Shot: number | null };

/** As the game has them: ticks in a second, units in a second, units that a shot goes, shots of a full weapon. */
const [TICKS, SPEED, SHOT_LENGTH, SHOTS] = [20, 10, 30, 5];
/** How far in the past others are drawn, in ticks: two patches. */
const BEHIND = 2;
/** Units of the arena that are seen, along the shorter side of the window: fewer on a phone. */
const seen = (): number => (Math.min(innerWidth, innerHeight) < 600 ? 30 : 42);
/** How often a held trigger shoots, in ms. */
const TRIGGER = 190;
const COLOURS = ["#4be3a4", "#ff8a5c", "#6db7ff", "#f4bd5b", "#b69bff", "#ff7fb0", "#5fe0e6", "#c7e36a"];
const colour = (seat: number | string): string => COLOURS[Number(seat) % COLOURS.length]!;

const canvas = byId<HTMLCanvasElement>("field");
const pen = canvas.getContext("2d", { alpha: false })!;

/** What is to be drawn for a while: since when, for how long in ms, and how, from 0 to 1. */
let effects: { since: number; lasts: number; draw(part: number): void }[] = [];
let client: Client | null = null;
let room: Room<State, Out, In, Reply, Weapon> | null = null;
/** States with their ticks, and by how much this clock, in ticks, is before the server's. */
let states: { tick: number; players: State["players"] }[] = [];
let ahead = -Infinity;
/** One's own player, as it is shown, and where it was lately. */
let own: Point | null = null;
let trail: (Point & { at: number })[] = [];
/** By how much it is still to be led, and since when it stands. */
let pull: Point = { x: 0, y: 0 };
let stands = 0;
let camera: Point & { scale: number } = { x: 50, y: 50, scale: 10 };
/** Where to run, as the server was told. */
let said: Direction = run;
let shotAt = 0;
/** Where things are drawn; with `frames`, for whoever looks from the browser's console. */
const drawn: Record<string, Point> = {};
const frames: { interval: number; work: number }[] = [];
const onScreen = ({ x, y }: Point): Point => ({
  x: (x - camera.x) * camera.scale + innerWidth / 2,
  y: (y - camera.y) * camera.scale + innerHeight / 2,
});
const inside = { drawn, frames, onScreen: (seat: number) => onScreen(drawn[seat]!), get client() { return client; }, get room() { return room; } };
Object.assign(window, { arena: inside });

// What happens.

function take(state: State, tick: number): void {
  const last = states.at(-1);
  if (last !== undefined && tick < last.tick) states = [];
  // Nothing changed between the two: what was there until now stood still.
  if (last !== undefined && tick > last.tick + 1) states.push({ tick: tick - 1, players: last.players });
  states.push({ tick, players: state.players });
  states.splice(0, states.length - 24);
  const early = tick - (performance.now() / 1000) * TICKS;
  ahead = Math.abs(early - ahead) > TICKS ? early : Math.max(early, ahead - 0.002);
  lead(state.players[room!.seat]);
  list(state.players);
}

/** Leads one's own player to where the server had it when it saw the same directions. */
function lead(there: Player | undefined): void {
  byId("fallen").classList.toggle("hidden", there === undefined || there.hp > 0);
  if (there === undefined) return;
  const then = performance.now() - (room!.latency ?? 0) - 1000 / TICKS;
  const was = trail.find(({ at }) => at >= then) ?? own;
  const [x, y] = [there.x - (was?.x ?? 0), there.y - (was?.y ?? 0)];
  if (own === null || was === null || Math.hypot(x, y) > 5) {
    [own, pull, trail] = [{ x: there.x, y: there.y }, { x: 0, y: 0 }, []];
  } else pull = { x, y };
}

function list(players: State["players"]): void {
  const isOwn = (seat: string): boolean => Number(seat) === room!.seat;
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

function happen(message: Out): void {
  if ("Shot" in message) {
    const { by, toward, hit } = message.Shot;
    const from = drawn[by];
    const at = hit === null ? null : drawn[hit];
    if (from === undefined) return;
    const to = at ?? { x: from.x + toward[0] * SHOT_LENGTH, y: from.y + toward[1] * SHOT_LENGTH };
    ray({ ...from }, { ...to }, colour(by));
    if (hit !== null && at !== undefined) burst({ ...to }, colour(hit), 9, 2.6, 320);
    return;
  }
  const { seat, by } = message.Down;
  const at = drawn[seat];
  if (at !== undefined) burst({ ...at }, colour(seat), 22, 6, 700);
  const line = make("li");
  const name = (seat: number): HTMLElement => make("b", "", room?.state?.players[seat]?.name ?? "somebody");
  line.append(name(by), " took down ", name(seat));
  byId("feed").append(line);
  line.addEventListener("animationend", () => line.remove());
}

function ray(from: Point, to: Point, stroke: string): void {
  const draw = (part: number): void => {
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

function burst(at: Point, fill: string, count: number, reach: number, lasts: number): void {
  const sparks = Array.from({ length: count }, (_, n) => ({
    angle: ((n + Math.random()) / count) * 2 * Math.PI,
    reach: reach * (0.4 + 0.6 * Math.random()),
  }));
  const draw = (part: number): void => {
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

// What is drawn.

function circle({ x, y }: Point, radius: number, from = 0, to = 2 * Math.PI): void {
  pen.beginPath();
  pen.arc(x, y, radius, from, to);
}

/** Where everybody is at this tick, which lies between two states. */
function between(tick: number): State["players"] {
  const after = states.findIndex((state) => state.tick > tick);
  const [a, b] = after < 1 ? [states.at(after), states.at(after)] : [states[after - 1], states[after]];
  if (a === undefined || b === undefined) return {};
  const part = a === b ? 0 : (tick - a.tick) / (b.tick - a.tick);
  return Object.fromEntries(
    Object.entries(b.players).map(([seat, player]) => {
      const before = a.players[seat] ?? player;
      // Who gets up does so elsewhere, and does not slide there.
      const gap = Math.hypot(player.x - before.x, player.y - before.y) > 5;
      const mix = (from: number, to: number): number => (gap ? to : from + (to - from) * part);
      return [seat, { ...player, x: mix(before.x, player.x), y: mix(before.y, player.y) }];
    }),
  );
}

/** A soft light of a colour, painted once: a blur for each frame would cost more than all else. */
const lights = new Map<string, HTMLCanvasElement>();
function light(tint: string, { x, y }: Point, radius: number, strength: number): void {
  let there = lights.get(tint);
  if (there === undefined) {
    there = Object.assign(document.createElement("canvas"), { width: 128, height: 128 });
    const brush = there.getContext("2d")!;
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

function ground(size: number, width: number, height: number): void {
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
  for (const [step, stroke, thick] of [[5, "#17242a", 1], [25, "#22353c", 1.5]] as const) {
    pen.strokeStyle = stroke;
    pen.lineWidth = thick / camera.scale;
    pen.beginPath();
    for (let x = Math.ceil(left / step) * step; x <= right; x += step) pen.moveTo(x, top), pen.lineTo(x, bottom);
    for (let y = Math.ceil(top / step) * step; y <= bottom; y += step) pen.moveTo(left, y), pen.lineTo(right, y);
    pen.stroke();
  }
  for (const [thick, stroke] of [[1.6, "rgb(75 227 164 / 9%)"], [0.7, "rgb(75 227 164 / 16%)"], [0.18, "#4be3a4"]] as const) {
    pen.strokeStyle = stroke;
    pen.lineWidth = thick;
    pen.strokeRect(0, 0, size, size);
  }
}

/** Everybody from far above, in a corner. */
function map(players: State["players"], size: number): void {
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
    circle({ x: left + 6 + (x / size) * (side - 12), y: top + 6 + (y / size) * (side - 12) }, isOwn ? 3.4 : 2.4);
    pen.fill();
  }
  pen.globalAlpha = 1;
}

function figure(seat: string, { x, y, hp, name }: Player): void {
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
  circle(at, 1.34, -Math.PI / 2, -Math.PI / 2 + (hp / 100) * 2 * Math.PI);
  pen.stroke();
  if (turn !== null) {
    pen.strokeStyle = "#ffffff";
    pen.lineWidth = 0.26;
    circle(at, 1.82, turn - 0.36, turn + 0.36);
    pen.stroke();
    const shots = room!.privateState?.shots ?? 0;
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

let before = performance.now();
function frame(now: number): void {
  requestAnimationFrame(frame);
  const begun = performance.now();
  const span = Math.min(0.1, (now - before) / 1000);
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
  const players = between((begun / 1000) * TICKS + ahead - BEHIND);
  move(players, size, span, begun);
  camera.scale = Math.min(width, height) / Math.min(seen(), size + 8);
  const follow = (at: number, half: number): number => (half * 2 > size + 8 ? size / 2 : Math.min(Math.max(at, half - 4), size + 4 - half));
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
  frames.at(-1)!.work = performance.now() - begun;
}

/** Says where to run, until it is said: what waits to be acknowledged is bounded. */
function say(): void {
  if (room === null || run === said) return;
  try {
    room.send({ Run: run });
    said = run;
    byId("hint").classList.add("gone");
  } catch (error) {
    if (!(error instanceof FullError)) throw error;
  }
}

/** Where one's own player aims. */
const aimed = (at: Point): Direction => aim(onScreen(at));

/** Moves one's own player as the server will, and shoots while the trigger is held. */
function move(players: State["players"], size: number, span: number, now: number): void {
  const player = room === null ? undefined : players[room.seat];
  const there = room?.state?.players[room.seat];
  if (room === null || own === null || there === undefined) return;
  if (there.hp > 0) {
    own.x = Math.min(size, Math.max(0, own.x + run[0] * SPEED * span));
    own.y = Math.min(size, Math.max(0, own.y + run[1] * SPEED * span));
  }
  if (run[0] !== 0 || run[1] !== 0) stands = now;
  // Whatever is still under way, who has stood for a while is where the server says.
  else if (now - stands > 300) pull = { x: there.x - own.x, y: there.y - own.y };
  const part = 1 - Math.exp(-8 * span);
  for (const point of [own, ...trail]) {
    point.x += pull.x * part;
    point.y += pull.y * part;
  }
  pull = { x: pull.x * (1 - part), y: pull.y * (1 - part) };
  trail = [...trail.filter(({ at }) => at > now - 500), { ...own, at: now }];
  if (player !== undefined) Object.assign(player, { x: own.x, y: own.y, hp: there.hp });
  if (isFiring() && there.hp > 0 && (room.privateState?.shots ?? 0) > 0 && now - shotAt > TRIGGER) {
    shotAt = now;
    // Who is down meanwhile, or has no shot left, is refused: nothing to be said about.
    room.call({ Shoot: aimed(own) }).catch(() => undefined);
  }
}

// In.

const entrance = door(async (name) => {
  const mine = await checkIn(name);
  try {
    [states, own, trail] = [[], null, []];
    // `?key=…` is an arena of friends: whoever has the link meets there, and nobody else finds it.
    const key = new URLSearchParams(location.search).get("key");
    const options = key === null ? {} : { key, private: true };
    room = await mine.joinOrCreate<State, Out, In, Reply, Weapon>("arena", options);
  } catch (error) {
    await mine.close();
    throw error;
  }
  client = mine;
  // Whose connection is lost stands still; back again, it runs as the keys are held.
  client.on("status", () => (said = [0, 0]));
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
