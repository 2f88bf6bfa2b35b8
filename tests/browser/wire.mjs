// Reads what a session server sent to a page, with other people's decoders: what must not be on the wire is looked for
// in the bytes themselves. The layouts are those of PROTOCOL.md, section "Headers".

import { require } from "./harness.mjs";

const { decode } = require("@msgpack/msgpack");
const { applyDelta } = require("fossil-delta");

const [EVENT, PATCH, PIECE] = [0xa0, 0xb0, 0xb1];
/** The view that every client of an instance sees, and the one of a seat. */
export const SHARED = 0;
export const ofSeat = (seat) => 0x8000 | seat;

/**
 * What the frames say: messages of the game in order, and each state of each view by the view's number, with the step that
 * made them; and every frame that is neither, as it came.
 */
export function read(frames) {
  const [messages, views, others, whole] = [[], new Map(), [], new Map()];
  const show = (view, version, tick, bytes) => {
    whole.set(view, { version, bytes });
    views.set(view, [...(views.get(view) ?? []), { tick, state: decode(bytes) }]);
  };
  // Patches that came before the snapshot that they are made for.
  const early = [];
  const patch = ({ view, base, version, tick, delta }) => {
    const there = whole.get(view);
    if (there === undefined || base > there.version) return false;
    if (base === there.version) show(view, version, tick, Buffer.from(applyDelta(there.bytes, delta)));
    return true;
  };
  for (const frame of frames) {
    const view = frame.length > 6 ? frame.readUInt16LE(5) : -1;
    if (frame[0] === EVENT) messages.push({ tick: frame.readUInt32LE(13), message: decode(frame.subarray(17)) });
    else if (frame[0] === PIECE) {
      const [offset, version, total] = [11, 15, 19].map((at) => frame.readUInt32LE(at));
      if (offset !== 0 || frame.length - 23 !== total) throw new Error("a view of a duel comes in one piece");
      show(view, version, frame.readUInt32LE(7), frame.subarray(23));
      while (early.some((made, at) => patch(made) && early.splice(at, 1)));
    } else if (frame[0] === PATCH) {
      const [tick, base, version] = [7, 11, 15].map((at) => frame.readUInt32LE(at));
      const made = { view, tick, base, version, delta: frame.subarray(19) };
      if (!patch(made)) early.push(made);
    } else others.push(frame);
  }
  if (early.length > 0) throw new Error(`${early.length} patches have no state that they are for`);
  return { messages, views, others };
}
