/** What a player does with a keyboard and a mouse, or with two thumbs: where to run, where to aim, whether to shoot. */

export type Point = { x: number; y: number };
export type Direction = [x: number, y: number];
/** A thumb: where it came down, and where it is. The left half of the screen runs, the right one aims and shoots. */
type Stick = { base: Point; at: Point; isAim: boolean };

const DIRECTIONS: Record<string, Direction> = {
  KeyW: [0, -1], ArrowUp: [0, -1], KeyS: [0, 1], ArrowDown: [0, 1],
  KeyA: [-1, 0], ArrowLeft: [-1, 0], KeyD: [1, 0], ArrowRight: [1, 0],
};
const keys = new Set<string>();
const sticks = new Map<number, Stick>();
const mouse = { x: 0, y: 0, isDown: false };

/** Whether there are thumbs and no mouse. */
export const isTouch = matchMedia("(hover: none)").matches;
/** Where to run: another object each time it changes; (0, 0) stands still. */
export let run: Direction = [0, 0];

export function unit(x: number, y: number): Direction {
  const length = Math.hypot(x, y);
  return length === 0 ? [0, 0] : [x / length, y / length];
}

const thumb = (isAim: boolean): Stick | undefined =>
  // One that rests where it came down says nothing.
  [...sticks.values()].find(({ base, at, isAim: aims }) => aims === isAim && Math.hypot(at.x - base.x, at.y - base.y) > 12);

/** Whether to shoot, as long as there is something to shoot with. */
export const isFiring = (): boolean => mouse.isDown || keys.has("Space") || thumb(true) !== undefined;

/** Where to aim, from a place on the screen. */
export function aim(from: Point): Direction {
  const stick = thumb(true);
  if (stick !== undefined) return unit(stick.at.x - stick.base.x, stick.at.y - stick.base.y);
  if (mouse.x !== 0 || mouse.y !== 0) return unit(mouse.x - from.x, mouse.y - from.y);
  return run[0] === 0 && run[1] === 0 ? [1, 0] : run;
}

function steer(): void {
  const held = [...keys].flatMap((key) => (DIRECTIONS[key] === undefined ? [] : [DIRECTIONS[key]]));
  const [x, y] = held.reduce<Direction>(([x, y], [dx, dy]) => [x + dx, y + dy], [0, 0]);
  let next = unit(x, y);
  const stick = thumb(false);
  if (stick !== undefined) {
    // To a sixteenth of a turn, so that a thumb that trembles does not send a message for each pixel.
    const turn = (Math.round((Math.atan2(stick.at.y - stick.base.y, stick.at.x - stick.base.x) * 8) / Math.PI) * Math.PI) / 8;
    next = [Math.cos(turn), Math.sin(turn)];
  }
  if (next[0] !== run[0] || next[1] !== run[1]) run = next;
}

/** Draws where thumbs are, or where they are to go. */
export function paint(pen: CanvasRenderingContext2D): void {
  const circle = ({ x, y }: Point, radius: number): void => {
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
  };
  pen.lineWidth = 2;
  for (const { base, at, isAim } of sticks.values()) {
    const [dx, dy] = unit(at.x - base.x, at.y - base.y);
    const far = Math.min(44, Math.hypot(at.x - base.x, at.y - base.y));
    pen.strokeStyle = pen.fillStyle = isAim ? "rgb(255 111 111 / 60%)" : "rgb(231 239 236 / 40%)";
    circle(base, 56);
    pen.stroke();
    circle({ x: base.x + dx * far, y: base.y + dy * far }, 25);
    pen.fill();
  }
  if (!isTouch || sticks.size > 0) return;
  pen.font = "600 12px system-ui, sans-serif";
  pen.textAlign = "center";
  for (const [x, text] of [[innerWidth * 0.24, "run"], [innerWidth * 0.76, "shoot"]] as const) {
    pen.strokeStyle = pen.fillStyle = "rgb(231 239 236 / 26%)";
    circle({ x, y: innerHeight - 92 }, 44);
    pen.stroke();
    pen.fillText(text, x, innerHeight - 88);
  }
}

function touch({ pointerId, clientX, clientY }: PointerEvent): void {
  const at = { x: clientX, y: clientY };
  const there = sticks.get(pointerId);
  if (there !== undefined) there.at = at;
  else sticks.set(pointerId, { base: at, at, isAim: at.x > innerWidth / 2 });
  steer();
}

/** Listens to the window, and to what is pressed on this element. */
export function listen(field: HTMLElement): void {
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
  for (const end of ["pointerup", "pointercancel"] as const) {
    addEventListener(end, ({ pointerId, pointerType }) => {
      if (pointerType !== "touch") mouse.isDown = false;
      if (sticks.delete(pointerId)) steer();
    });
  }
  field.addEventListener("contextmenu", (event) => event.preventDefault());
}
