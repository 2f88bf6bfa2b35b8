//! A node that speaks Couchbase's protocols, for tests: the official SDK talks to it unmodified.
//!
//! *Takes*: key-value requests over TCP, management and query requests over HTTP, faults on command.
//! *Gives*: what a cluster of real nodes would answer, as far as Greenroom's client side needs it.
//! *Owns*: its documents, and its misbehaviour.
//! *Never*: is linked into the product.
