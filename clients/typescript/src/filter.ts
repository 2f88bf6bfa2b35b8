/** Filters, as an application writes them: `all(field("mode").eq("ranked"), not(field("rating").lt(1400)))`. */

/** What a field can be compared with: true or false, a whole number, or a text. */
export type Value = boolean | number | bigint | string;

/** What lets some instances through: the operator and its operands, as PROTOCOL.md has them. */
export type Filter =
  | { readonly and: readonly Filter[] }
  | { readonly or: readonly Filter[] }
  | { readonly not: Filter }
  | { readonly eq: readonly [string, Value] }
  | { readonly ne: readonly [string, Value] }
  | { readonly in: readonly [string, readonly Value[]] }
  | { readonly lt: readonly [string, Value] }
  | { readonly le: readonly [string, Value] }
  | { readonly gt: readonly [string, Value] }
  | { readonly ge: readonly [string, Value] }
  | { readonly between: readonly [string, Value, Value] }
  | { readonly prefix: readonly [string, string] };

/** Lets everything through. */
export const EVERYTHING: Filter = { and: [] };

/** A field, of which a condition is still to be said. */
export interface Field {
  /** It is this value. */
  eq(value: Value): Filter;
  /** It is not this value, or not there. */
  ne(value: Value): Filter;
  /** It is less than this value. */
  lt(value: Value): Filter;
  /** It is at most this value. */
  le(value: Value): Filter;
  /** It is more than this value. */
  gt(value: Value): Filter;
  /** It is at least this value. */
  ge(value: Value): Filter;
  /** It is at least the first value and at most the second. */
  between(from: Value, to: Value): Filter;
  /** It is one of these values; of none, nobody's is. */
  oneOf(values: readonly Value[]): Filter;
  /** It is a text that begins so. */
  prefix(beginning: string): Filter;
}

/** A field that its kind declares, or one that every instance has, as `created`, `seats_free` or `key`. */
export function field(name: string): Field {
  return {
    eq: (value) => ({ eq: [name, value] }),
    ne: (value) => ({ ne: [name, value] }),
    lt: (value) => ({ lt: [name, value] }),
    le: (value) => ({ le: [name, value] }),
    gt: (value) => ({ gt: [name, value] }),
    ge: (value) => ({ ge: [name, value] }),
    between: (from, to) => ({ between: [name, from, to] }),
    oneOf: (values) => ({ in: [name, values] }),
    prefix: (beginning) => ({ prefix: [name, beginning] }),
  };
}

/** Lets through what all of these let through; of none of them, everything. */
export const all = (...filters: readonly Filter[]): Filter => ({
  // Flat, since how deep a filter may nest is bounded.
  and: filters.flatMap((filter) => ("and" in filter ? filter.and : [filter])),
});

/** Lets through what one of these lets through; of none of them, nothing. */
export const any = (...filters: readonly Filter[]): Filter => ({
  or: filters.flatMap((filter) => ("or" in filter ? filter.or : [filter])),
});

/** Lets through what this does not let through. */
export const not = (filter: Filter): Filter => ({ not: filter });
