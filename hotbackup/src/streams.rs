//! Files that the host writes through streams of the C library (fopen, stdout).
//!
//! Their bytes leave inside the C library, at any call on any stream, and pass no hook. So a file with a stream that can be
//! written to is suspect for the rest of the session: it is read whole in the freeze. All streams that are open are found in the
//! C library's own list, before each try of the cut and once more in the freeze, when every captured call is over. Of those
//! that were closed before, the hook of `fclose` tells ([`extents::STREAM`]): it is a captured call, so none is half closed then.
//!
//! The streams themselves are not held up at the gate: a thread may wait for another one's stream, which may wait there.

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::conductor::{Engine, Trouble};
use crate::copier::Side;
use crate::direct::host_thread;
use crate::extents;
use crate::intercept::device;
use crate::registry::WATCH;
use crate::sys;
use crate::sys::streams::Streams;
use crate::tree::NodeId;

/// How the streams of the host are found.
pub(crate) struct Look {
    streams: Option<Streams>,
    /// The thread whose descriptors the host's are.
    thread: u32,
    /// Suspect files that no warning names yet.
    unnamed: Vec<NodeId>,
}

impl Look {
    pub(crate) fn new() -> Look {
        Look { streams: Streams::find(), thread: sys::raw::getpid(), unnamed: Vec::new() }
    }

    /// Reserves what the freeze may add.
    pub(crate) fn make_room(&mut self, room: usize) {
        self.unnamed.reserve(room);
        self.thread = host_thread();
    }
}

/// Tells of each file that a stream which can be written to stands for, by device and inode. `thread` is one that has the host's
/// descriptors. False if the streams did not keep still. Allocates nothing.
pub(crate) fn each_file(streams: Streams, thread: u32, visit: &mut dyn FnMut((u64, u64))) -> bool {
    streams.writable(|fd| {
        // A file on a server that does not answer must not hold us up.
        let (quick, wanted) = (AtFlags::STATX_DONT_SYNC, StatxFlags::INO | StatxFlags::TYPE);
        let found = sys::raw::with_path_of_descriptor_of(thread, fd, |path| statx(CWD, path, quick, wanted));
        if let Some(Ok(found)) = found {
            visit((device(&found), found.stx_ino));
        }
    })
}

impl Engine<'_> {
    /// Finds the files that are written through streams now. Allocates nothing in the freeze.
    pub(crate) fn suspect_streams(&mut self) -> Result<(), Trouble> {
        let Some(streams) = self.look.streams else { return Ok(()) };
        let thread = self.look.thread;
        let mut outcome = Ok(());
        let settled = each_file(streams, thread, &mut |(dev, ino)| {
            if let Some(marks) = WATCH.find(dev, ino)
                && outcome.is_ok()
            {
                outcome = self.suspect_stream(marks.node());
            }
        });
        if !settled {
            return Err(Trouble::Void("streams were opened and closed too fast to be told"));
        }
        outcome
    }

    /// Has a file that is written through a stream, or was, read whole in the freeze.
    pub(crate) fn suspect_stream(&mut self, id: NodeId) -> Result<(), Trouble> {
        let Some(node) = self.tree.get(id) else { return Ok(()) };
        if node.suspect || node.excluded || !node.is_file() {
            return Ok(());
        }
        let is_fixed = self.tree.is_fixed();
        crate::walk::push(&mut self.suspects, id, is_fixed)?;
        crate::walk::push(&mut self.look.unnamed, id, is_fixed)?;
        self.tree.node_mut(id).suspect = true;
        Ok(())
    }

    /// Does so with a file that a hook has told of.
    pub(crate) fn heed_stream(&mut self, id: NodeId) -> Result<(), Trouble> {
        let told = self.tree.get(id).is_some_and(|node| node.marks.has(extents::STREAM));
        if told { self.suspect_stream(id) } else { Ok(()) }
    }

    /// Warns of the files found since the last time.
    pub(crate) fn name_streams(&mut self) {
        for id in std::mem::take(&mut self.look.unnamed) {
            let path = self.path_of(id, Side::Source);
            let text = "is written through a stream of the C library: it was copied whole at the cut, without what the stream \
                        may hold back";
            self.warn(Some(path), text.to_owned());
        }
    }
}
