//! The command line: reads pinned maps, so that inspecting never needs a living agent.
