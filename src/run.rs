//! The story of a run: resolve → render → admit → submit → wait.
