//! The stack that a program's calls need together, as older kernels count it.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context, Result};
use aya_obj::{Object, generated::bpf_insn};
use dataplane_agent::datapath::object::EMBEDDED;

/// What kernels allow (`MAX_BPF_STACK`).
pub const MOST: u32 = 512;

/// Kernels before 6.7 round each function's part up to a multiple of this (`check_max_stack_depth`); later ones to less.
const STEP: u32 = 32;

// Instructions, as `linux/bpf.h` encodes them.
const COPY: u8 = 0xbf;
const ADD: u8 = 0x07;
const CALL: u8 = 0x85;
const CALL_OF_FUNCTION: u8 = 1;
const FRAME: u8 = 10;
const CLASS: u8 = 0x07;

/// Bytes of stack of the deepest chain of calls, by program.
pub fn deepest() -> Result<BTreeMap<String, u32>> {
    let mut object = Object::parse(EMBEDDED)?;
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections)?;
    let programs = object.programs.iter().map(|(name, program)| {
        let function = object.functions.get(&program.function_key()).with_context(|| format!("{name} has no code"))?;
        Ok((name.clone(), Code(&function.instructions).depth(0)))
    });
    programs.collect()
}

/// A program with all that it calls.
struct Code<'a>(&'a [bpf_insn]);

impl Code<'_> {
    /// Bytes that the function at `start` and those below it need.
    fn depth(&self, start: usize) -> u32 {
        let end = self.starts().range(start + 1..).next().copied().unwrap_or(self.0.len());
        let below = (start..end).filter_map(|index| self.called(index)).map(|callee| self.depth(callee));
        self.frame(start, end).max(1).next_multiple_of(STEP) + below.max().unwrap_or(0)
    }

    /// Where functions begin.
    fn starts(&self) -> std::collections::BTreeSet<usize> {
        (0..self.0.len()).filter_map(|index| self.called(index)).collect()
    }

    /// The function that the instruction at `index` calls.
    fn called(&self, index: usize) -> Option<usize> {
        let instruction = &self.0[index];
        let calls = instruction.code == CALL && instruction.src_reg() == CALL_OF_FUNCTION;
        calls.then(|| (index + 1).saturating_add_signed(instruction.imm as isize))
    }

    /// The lowest place of its own stack that a function uses or hands on.
    fn frame(&self, start: usize, end: usize) -> u32 {
        let code = &self.0[start..end];
        let accesses = code.iter().filter(|each| {
            // Loads have the address in the source, stores in the destination.
            let address = match each.code & CLASS {
                1 => each.src_reg(),
                2 | 3 => each.dst_reg(),
                _ => return false,
            };
            address == FRAME
        });
        let addresses = code.windows(2).filter(|pair| {
            pair[0].code == COPY
                && pair[0].src_reg() == FRAME
                && pair[1].code == ADD
                && pair[1].dst_reg() == pair[0].dst_reg()
        });
        let offsets = accesses.map(|each| i32::from(each.off)).chain(addresses.map(|pair| pair[1].imm));
        offsets.min().unwrap_or(0).min(0).unsigned_abs()
    }
}
