/** The part of a browser's `WebSocket` that is used here. */

import { ArgumentError } from "./errors.js";

/** An open conversation, or one that is being opened. */
export interface Socket {
  binaryType: string;
  onopen: ((event: unknown) => void) | null;
  onmessage: ((event: { readonly data: unknown }) => void) | null;
  onclose: ((event: { readonly code?: number; readonly reason?: string }) => void) | null;
  onerror: ((event: { readonly message?: string }) => void) | null;
  send(data: Uint8Array): void;
  close(): void;
}

/** A constructor as `WebSocket` is one. */
export type SocketConstructor = new (url: string, protocol: string) => Socket;

/**
 * The platform's own: that of a browser, or of Node 22 and newer. Node 20 has none, and gets ours, as does who trusts other
 * certificates, which Node's own can't be told.
 */
export async function platformSocket(trust?: string): Promise<SocketConstructor> {
  const own = (globalThis as { WebSocket?: unknown }).WebSocket;
  if (own !== undefined && trust === undefined) return own as SocketConstructor;
  const { NodeSocket }: Partial<typeof import("./socket-node.js")> = await import("./socket-node.js");
  if (NodeSocket === undefined) throw new ArgumentError("`trust` is for Node: a browser trusts whom its user trusts");
  return trust === undefined ? NodeSocket : NodeSocket.trusting(trust);
}
