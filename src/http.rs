//! The front door's HTTP: it translates, and decides nothing.
