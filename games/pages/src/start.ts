/** The start page: who plays, as it changes. */

import { all } from "greenroom";

import { byId, checkIn, words } from "./page.js";

const plural = (count: number, one: string): string => `${count} ${one}${count === 1 ? "" : "s"}`;

try {
  // A visitor who looks around is nobody that a game should know again.
  const client = await checkIn("visitor", false);
  await client.watch("arena", all(), (_, current) => {
    const players = [...current.values()].reduce((sum, { seatsTaken }) => sum + seatsTaken, 0);
    const arenas = plural(current.size, "arena");
    byId("arena-count").textContent = players === 0 ? "nobody is in yet: be the first" : `${plural(players, "player")} in ${arenas}`;
  });
  await client.watch("duel", all(), (_, current) => {
    const count = (phase: string): number => [...current.values()].filter(({ meta }) => meta["phase"] === phase).length;
    const [waiting, playing] = [count("waiting"), count("playing")];
    byId("duel-count").textContent =
      waiting + playing === 0 ? "nobody waits: open a duel" : `${waiting} waiting for an opponent, ${playing} being played`;
  });
} catch (error) {
  byId("badge").textContent = words(error);
}
