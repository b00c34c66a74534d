//! The ordered list of map operations that turns what is installed into what is desired.
