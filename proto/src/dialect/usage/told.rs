//! Finds the further ids that an answer tells of, at the places that the table gives for its operation.
//!
//! The walk asks for each key and element whether a place lies beyond it, so that nothing else is entered.

use crate::dialect::{
    operation::IdPath,
    text::{Text, unescape},
};

/// Ids that one answer may tell of; more are not learnt. 32 x 256 bytes = 8 KiB an answer at the worst.
const IDS_MAX: usize = 32;

/// Most steps of a path: a test holds the table to it.
const STEPS_MAX: usize = 8;

/// What was told so far.
#[derive(Debug)]
pub(super) struct Told {
    paths: &'static [IdPath],
    /// Which paths lead through each container that was entered, the outermost first: a bit each.
    through: [u32; STEPS_MAX],
    /// Which lead to the value in hand.
    here: u32,
    ids: Vec<Box<str>>,
    scratch: Text,
}

impl Told {
    pub(super) fn new(paths: &'static [IdPath]) -> Self {
        let mut through = [0; STEPS_MAX];
        // All lead through the outermost object.
        through[0] = u32::MAX;
        Self {
            paths,
            through,
            here: 0,
            ids: Vec::new(),
            scratch: Text::new(),
        }
    }

    pub(super) fn ids(&self) -> &[Box<str>] {
        &self.ids
    }

    /// A key of the container at `level`, the outermost being 1. Whether an id may be in its value.
    pub(super) fn key(&mut self, level: usize, name: &[u8]) -> bool {
        self.step(level, name)
    }

    /// An element of the array at `level`.
    pub(super) fn element(&mut self, level: usize) -> bool {
        self.step(level, b"[]")
    }

    fn step(&mut self, level: usize, name: &[u8]) -> bool {
        self.here = 0;
        let Some(through) = level.checked_sub(1).and_then(|at| self.through.get(at)) else {
            return false;
        };
        for (at, path) in self.paths.iter().enumerate().take(u32::BITS as usize) {
            let leads = through & (1 << at) != 0
                && path
                    .steps()
                    .get(level - 1)
                    .is_some_and(|step| step.as_bytes() == name);
            self.here |= u32::from(leads) << at;
        }
        self.here != 0
    }

    /// The value in hand is a container, which is now the one at `level`.
    pub(super) fn opened(&mut self, level: usize) {
        if let Some(through) = level.checked_sub(1).and_then(|at| self.through.get_mut(at)) {
            *through = self.here;
        }
    }

    /// The value in hand, in the container at `level`, is a string.
    pub(super) fn text(&mut self, level: usize, raw: &[u8]) {
        let here = self.here;
        let ends =
            |(at, path): (usize, &IdPath)| here & (1 << at) != 0 && path.steps().len() == level;
        let paths = self.paths.iter().enumerate().take(u32::BITS as usize);
        if here == 0 || !paths.into_iter().any(ends) || self.ids.len() == IDS_MAX {
            return;
        }
        let id = unescape(raw, &mut self.scratch).and_then(|()| self.scratch.as_str());
        if let Some(id) = id.filter(|id| !id.is_empty())
            && !self.ids.iter().any(|known| **known == *id)
        {
            self.ids.push(id.into());
        }
    }
}
