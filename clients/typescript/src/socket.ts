/** The part of a browser's `WebSocket` that is used here. */

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

/** The platform's own: that of a browser, or of Node 22 and newer; Node 20 has none, and gets ours. */
export async function platformSocket(): Promise<SocketConstructor> {
  const own = (globalThis as { WebSocket?: unknown }).WebSocket;
  if (own !== undefined) return own as SocketConstructor;
  const { NodeSocket } = await import("./socket-node.js");
  return NodeSocket;
}
