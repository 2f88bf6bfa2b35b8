//! The storage actor: what is to stay goes through here, in order per key, spread over tasks.
//!
//! *Takes*: operations on documents, from masters and game servers.
//! *Gives*: an answer once a write is durable; typed queries.
//! *Owns*: the connection to the store, and the order of writes to a key.
//! *Never*: knows what a document means; stalls a tick; says that something is stored before it is.
