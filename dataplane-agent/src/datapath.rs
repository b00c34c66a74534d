//! Loads, pins, attaches and replaces the BPF programs.
