/**
 * The TypeScript SDK of Greenroom: games by instance, in a browser and in Node.
 *
 * @packageDocumentation
 */

export {
  type Answer,
  Client,
  type ClientEvents,
  connect,
  type CreateOptions,
  type JoinOptions,
  type JoinOrCreateOptions,
  type Options,
  type RankOptions,
  type SearchOptions,
  type Status,
  type Watch,
} from "./client.js";
export type { Path } from "./collections.js";
export type { Auth } from "./dialer.js";
export {
  ArgumentError,
  type Attempt,
  CallUndecidedError,
  ClosedError,
  DecodeError,
  FullError,
  GreenroomError,
  LeftError,
  NoServerError,
  type Refusal,
  RefusedError,
  TooLargeError,
  UnavailableError,
  UndecidedError,
} from "./errors.js";
export { all, any, type Field, field, type Filter, not, type Value } from "./filter.js";
export type { Unsubscribe } from "./handlers.js";
export { type ItemOf, Room } from "./room.js";
export type { Stats } from "./seat.js";
export type { Socket, SocketConstructor } from "./socket.js";
export type { Storage, Store } from "./storage.js";
export type { Current, WatchEvent } from "./watch.js";
export type { Found, Listed, Ranked, Ranking } from "./wire.js";
