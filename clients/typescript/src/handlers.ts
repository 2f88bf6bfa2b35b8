/** Who wants to be told of something. */

/** Ends what a registration began. */
export type Unsubscribe = () => void;

/** Calls the application. What it throws is its own: reported as uncaught, and nothing here stops for it. */
export function callOut(call: () => void): void {
  try {
    call();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}

/** The handlers of one kind of event, called in the order in which they came. */
export class Handlers<Arguments extends readonly unknown[]> {
  #handlers = new Set<{ readonly handler: (...told: Arguments) => void }>();

  add(handler: (...told: Arguments) => void): Unsubscribe {
    const entry = { handler };
    this.#handlers.add(entry);
    return () => {
      this.#handlers.delete(entry);
    };
  }

  tell(...told: Arguments): void {
    for (const entry of [...this.#handlers]) {
      // One of those before may have ended it.
      if (this.#handlers.has(entry)) callOut(() => entry.handler(...told));
    }
  }
}
