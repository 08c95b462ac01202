//! Connections and requests made to hang, to grow or to confuse.
