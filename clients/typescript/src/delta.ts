/** Fossil's delta format, the reading half. PROTOCOL.md, section 10. */

import { DecodeError } from "./errors.js";

const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";
const NO_DIGIT = 64;
const VALUES = new Uint8Array(256).fill(NO_DIGIT);
for (let value = 0; value < DIGITS.length; value++) VALUES[DIGITS.charCodeAt(value)] = value;

const [LF, COPY, COMMA, INSERT, END] = [0x0a, 0x40, 0x2c, 0x3a, 0x3b];

/**
 * The target that `delta` makes of `base`, of at most `max` bytes; no memory is reserved for a longer one, whatever the
 * delta says. `base` is only read.
 *
 * @throws {@link DecodeError}, whose `code` is one of those of `delta.json`.
 */
export function apply(base: Uint8Array, delta: Uint8Array, max: number): Uint8Array {
  let at = 0;
  const byte = (): number => {
    if (at >= delta.length) fail("truncated", `the delta ends after ${at} bytes, in the middle of a command`);
    return delta[at++]!;
  };
  const number = (): number => {
    const start = at;
    let value = 0;
    for (; at < delta.length && VALUES[delta[at]!]! < NO_DIGIT; at++) {
      value = value * 64 + VALUES[delta[at]!]!;
      if (value > 0xffff_ffff) fail("bad_number", `there is no 32-bit number at byte ${start} of the delta`);
    }
    if (at === start) {
      if (at >= delta.length) byte();
      fail("bad_number", `there is no 32-bit number at byte ${start} of the delta`);
    }
    return value;
  };
  const expect = (wanted: number): void => {
    const found = byte();
    if (found !== wanted) fail("bad_command", `the format has no byte ${found} at byte ${at - 1} of the delta`);
  };

  const declared = number();
  expect(LF);
  if (declared > max) fail("target_too_large", `the target has ${declared} bytes, and ${max} are allowed`);
  const target = new Uint8Array(declared);
  let made = 0;
  const append = (from: Uint8Array, start: number, length: number): void => {
    if (length > declared - made) {
      fail("length_mismatch", `the delta declares a target of ${declared} bytes and makes ${made + length}`);
    }
    target.set(from.subarray(start, start + length), made);
    made += length;
  };
  for (;;) {
    const argument = number();
    const command = byte();
    if (command === COPY) {
      const offset = number();
      expect(COMMA);
      if (offset + argument > base.length) {
        fail("copy_outside_base", `a copy takes ${argument} bytes from ${offset} on, of a base of ${base.length}`);
      }
      append(base, offset, argument);
    } else if (command === INSERT) {
      if (argument > delta.length - at) {
        fail("truncated", `the delta ends after ${delta.length} bytes, in the middle of a command`);
      }
      append(delta, at, argument);
      at += argument;
    } else if (command === END) {
      if (made !== declared) {
        fail("length_mismatch", `the delta declares a target of ${declared} bytes and makes ${made}`);
      }
      const sum = checksum(target);
      if (sum !== argument) fail("checksum_mismatch", `the checksum should be ${argument} and is ${sum}`);
      if (at < delta.length) fail("trailing_bytes", `${delta.length - at} bytes follow the end of the delta`);
      return target;
    } else {
      fail("bad_command", `the format has no byte ${command} at byte ${at - 1} of the delta`);
    }
  }
}

function fail(code: string, message: string): never {
  throw new DecodeError(code, message);
}

/** The sum of the bytes read as big-endian numbers of 32 bits, the last one padded with zeros. */
export function checksum(bytes: Uint8Array): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const whole = bytes.length & ~3;
  let sum = 0;
  for (let at = 0; at < whole; at += 4) sum = (sum + view.getUint32(at)) >>> 0;
  let rest = 0;
  for (let at = whole; at < whole + 4; at++) rest = rest * 256 + (bytes[at] ?? 0);
  return (sum + rest) >>> 0;
}
