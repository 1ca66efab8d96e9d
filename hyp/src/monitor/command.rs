//! The table of commands.

/// Returns from a command: the machine refuses.
macro_rules! refuse {
    ($session:expr, $($text:tt)*) => { return Err($session.refuse(format_args!($($text)*))) };
}

/// Returns from a command: the words that were typed are wrong.
macro_rules! usage {
    ($session:expr, $($text:tt)*) => { return Err($session.usage(format_args!($($text)*))) };
}

mod backing;
mod balance;
mod claims;
mod console;
mod cost;
mod evacuate;
mod guest;
mod guests;
mod heat;
mod help;
mod host;
mod jobs;
mod log;
mod memory;
mod migrate;
mod moved;
mod names;
mod physical;
mod pools;
mod rate;
mod retire;
mod stats;
mod top;
mod trace;
mod watch;

use super::grammar::{Kind, optional, required};
use super::session::{Command, Commands};

/// The commands.
pub const COMMANDS: Commands = Commands(&[
    Command {
        name: "help",
        parameters: &[optional("COMMAND", Kind::Command)],
        summary: "list the commands, or explain one",
        details: "Tab completes commands and arguments, the arrow keys recall earlier lines, Ctrl-C \
                  interrupts a command. Every command takes --json (one object on one line), --exact (bytes \
                  and nanoseconds instead of rounded units) and --help. Ctrl-] ? lists the keys that switch \
                  consoles.",
        example: "help start",
        run: help::run,
    },
    Command {
        name: "guests",
        parameters: &[],
        summary: "list the guests: state, vCPUs, memory, and why one is stopped",
        details: "",
        example: "guests --json",
        run: guests::list,
    },
    Command {
        name: "guest",
        parameters: &[required("GUEST", Kind::Guest), optional("tree|map", Kind::Word(&["tree", "map"]))],
        summary: "show a guest, its device tree, or the memory behind its RAM",
        details: "tree prints the source of the device tree that the guest gets. map lists the \
                  guest's RAM: the controllers that back it, and the number of units of 1 GiB, 2 MiB and 4 \
                  KiB.",
        example: "guest alpha map",
        run: guest::run,
    },
    Command {
        name: "start",
        parameters: &[required("GUEST", Kind::Guest)],
        summary: "start a guest that is off",
        details: "",
        example: "start alpha",
        run: guests::start,
    },
    Command {
        name: "stop",
        parameters: &[required("GUEST", Kind::Guest)],
        summary: "stop a guest at once and free its memory",
        details: "The guest is not asked to shut down; to shut it down cleanly, run poweroff in it.",
        example: "stop alpha",
        run: guests::stop,
    },
    Command {
        name: "reset",
        parameters: &[required("GUEST", Kind::Guest)],
        summary: "reset a guest: start it again from its images",
        details: "",
        example: "reset alpha",
        run: guests::reset,
    },
    Command {
        name: "cpus",
        parameters: &[],
        summary: "list the CPUs, their vCPUs and their mitigations",
        details: "",
        example: "cpus",
        run: host::cpus,
    },
    Command {
        name: "controllers",
        parameters: &[],
        summary: "list the memory controllers: their ranges and the use of their memory",
        details: "",
        example: "controllers --exact",
        run: host::controllers,
    },
    Command {
        name: "mem",
        parameters: &[],
        summary: "show the amount of RAM and its use",
        details: "Pool memory is lent to guests, so it also counts as Guests or Free. MovableOnly \
                  is the memory in zone MOVABLE: the designated movable blocks.",
        example: "mem --exact",
        run: memory::mem,
    },
    Command {
        name: "zones",
        parameters: &[],
        summary: "list the zones, in total and by controller",
        details: "NORMAL holds memory that Ballast cannot move, MOVABLE only guests' RAM. Their \
                  spans may overlap; every frame is present in exactly one.",
        example: "zones",
        run: memory::zones,
    },
    Command {
        name: "dmb",
        parameters: &[],
        summary: "list the designated movable blocks and their use",
        details: "LENT is memory that guests use and Ballast can move away, CLAIMED memory that the \
                  owners of pools have claimed.",
        example: "dmb",
        run: physical::dmb,
    },
    Command {
        name: "buddyinfo",
        parameters: &[],
        summary: "list the free blocks by order, for each zone and controller",
        details: "A block of order N has 2^N frames of 4 KiB: order 9 is 2 MiB, order 18 is 1 GiB.",
        example: "buddyinfo",
        run: physical::buddyinfo,
    },
    Command {
        name: "pagetypeinfo",
        parameters: &[],
        summary: "list pageblocks of 2 MiB and free blocks by migratetype",
        details: "",
        example: "pagetypeinfo",
        run: physical::pagetypeinfo,
    },
    Command {
        name: "check",
        parameters: &[],
        summary: "check the whole frame table for consistency",
        details: "Every frame must be in one block, one zone and one state; counters and free lists \
                  must match; guests' blocks must be mapped at the address in the reverse map.",
        example: "check",
        run: physical::check,
    },
    Command {
        name: "map",
        parameters: &[optional("CONTROLLER", Kind::Controller)],
        summary: "draw a map of the physical memory",
        details: "A character stands for 2 MiB, or for more if the controller is large.",
        example: "map mc0",
        run: memory::map,
    },
    Command {
        name: "frame",
        parameters: &[required("ADDRESS", Kind::Number(0, u64::MAX))],
        summary: "show everything known about the frame at a physical address",
        details: "",
        example: "frame 0x48000000",
        run: memory::frame,
    },
    Command {
        name: "migrate",
        parameters: &[
            required("GUEST", Kind::Guest),
            optional("REGION", Kind::Region),
            required("CONTROLLER", Kind::Controller),
            optional("--force", Kind::Flag),
        ],
        summary: "move a running guest's memory to a controller",
        details: "REGION is all, dmbs (the designated movable blocks), dmb0 (the first of them), \
                  ram0 (the first other region), or a range of guest addresses like 64M@0x48000000. The \
                  command returns at once; jobs shows the progress. --force moves a region to a controller \
                  that its strict placement excludes, and leaves the placement as it is.",
        example: "migrate alpha dmb0 mc1",
        run: migrate::migrate,
    },
    Command {
        name: "pin",
        parameters: &[
            required("GUEST", Kind::Guest),
            required("REGION", Kind::Region),
            required("CONTROLLERS", Kind::Controllers),
            optional("MODE", Kind::Word(&["strict", "preferred", "interleave"])),
        ],
        summary: "pin a region of a guest to controllers, and move it there",
        details: "CONTROLLERS are names separated by commas. The pin holds for the memory that the \
                  region has and for later allocations. MODE is strict: only these controllers (the \
                  default); preferred: others if these are full; interleave: in turns of 2 MiB, in \
                  proportion to free memory, which also redistributes memory that is there already. REGION \
                  is as for migrate, but not a part of a region.",
        example: "pin alpha all mc0,mc1 interleave",
        run: migrate::pin,
    },
    Command {
        name: "unpin",
        parameters: &[required("GUEST", Kind::Guest), optional("REGION", Kind::Region)],
        summary: "return a region of a guest to the placement in its configuration",
        details: "Nothing moves. REGION is as for pin; the default is all.",
        example: "unpin alpha",
        run: migrate::unpin,
    },
    Command {
        name: "evacuate",
        parameters: &[required("CONTROLLER", Kind::Controller)],
        summary: "move all guests' memory off a controller and close it to allocations",
        details: "Lists the memory that cannot move, and why. The controller is closed at once and \
                  evacuated once nothing behind it is in use, as controllers shows. restore opens it again.",
        example: "evacuate mc1",
        run: evacuate::evacuate,
    },
    Command {
        name: "restore",
        parameters: &[required("CONTROLLER", Kind::Controller)],
        summary: "open a controller to allocations again",
        details: "",
        example: "restore mc1",
        run: evacuate::restore,
    },
    Command {
        name: "balance",
        parameters: &[optional("free|bytes|heat", Kind::Word(&["free", "bytes", "heat"]))],
        summary: "move guests' memory so that controllers carry the same load",
        details: "The load is free: free memory (the default); bytes: guests' memory; or heat: \
                  memory that guests touch within a second. Differences up to an eighth of the mean (heat: a \
                  quarter) are left alone. Moving heat back needs twice the threshold. Pins and placements \
                  are respected; refused while jobs run.",
        example: "balance heat",
        run: balance::run,
    },
    Command {
        name: "heat",
        parameters: &[optional("SECONDS", Kind::Number(1, 60))],
        summary: "measure the memory that guests touch within some seconds",
        details: "Reads the access flags in stage 2, so a touched unit counts as a whole. Each unit \
                  is scanned twice; the report shows the cost. On CPUs without hardware access flags, the \
                  first access to each unit also faults.",
        example: "heat 5",
        run: heat::run,
    },
    Command {
        name: "retire",
        parameters: &[required("ADDRESS", Kind::Number(0, u64::MAX)), optional("SIZE", Kind::Size)],
        summary: "take failing memory out of use for good",
        details: "Guests' memory in the range is moved, then the frames are retired. The answer \
                  lists frames that must wait, for a release or for a guest to stop, and frames that cannot \
                  be retired.",
        example: "retire 0xbfff0000 64K",
        run: retire::retire,
    },
    Command {
        name: "jobs",
        parameters: &[],
        summary: "list the migrations: waiting, running, and recently ended",
        details: "",
        example: "watch 1 jobs",
        run: jobs::list,
    },
    Command {
        name: "job",
        parameters: &[required("NUMBER", Kind::Number(1, u32::MAX as u64))],
        summary: "show a migration: its progress, its rate, and the memory that did not move",
        details: "jobs lists the numbers.",
        example: "job 3",
        run: jobs::show,
    },
    Command {
        name: "pause",
        parameters: &[required("NUMBER", Kind::Number(1, u32::MAX as u64))],
        summary: "pause a migration",
        details: "",
        example: "pause 3",
        run: jobs::pause,
    },
    Command {
        name: "resume",
        parameters: &[required("NUMBER", Kind::Number(1, u32::MAX as u64))],
        summary: "resume a paused migration",
        details: "",
        example: "resume 3",
        run: jobs::resume,
    },
    Command {
        name: "cancel",
        parameters: &[required("NUMBER", Kind::Number(1, u32::MAX as u64))],
        summary: "cancel a migration",
        details: "Memory that has moved stays at its new place.",
        example: "cancel 3",
        run: jobs::cancel,
    },
    Command {
        name: "rate",
        parameters: &[
            optional("limit|slice|share|stall", Kind::Word(&["limit", "slice", "share", "stall"])),
            optional("VALUE", Kind::Either(&Kind::Size, &Kind::Word(&["off"]))),
        ],
        summary: "show or set the limits of migration",
        details: "limit: bytes a second, at least 64K, or off. slice: microseconds for which a CPU \
                  works on a job at a time. share: per cent of a guest's time that migration may take if no \
                  CPU is idle. stall: bytes left to copy up to which a guest that writes to a 2 MiB unit \
                  waits; with more left, the unit is split.",
        example: "rate limit 100M",
        run: rate::rate,
    },
    Command {
        name: "pools",
        parameters: &[],
        summary: "list the pools: lent, claimed and claimable memory",
        details: "A pool's memory is lent to guests until its owner claims it.",
        example: "pools",
        run: pools::list,
    },
    Command {
        name: "pool",
        parameters: &[required("POOL", Kind::Pool)],
        summary: "show a pool: its use, obstacles to claims, and a map",
        details: "",
        example: "pool video",
        run: pools::show,
    },
    Command {
        name: "claim",
        parameters: &[
            required("POOL|NUMBER|cancel", CLAIM),
            optional(
                "SIZE|SIZE@ADDRESS|NUMBER",
                Kind::Any("a size like 64M, or a range like 64M@0x48000000"),
            ),
            optional("ALIGNMENT", Kind::Size),
        ],
        summary: "claim contiguous memory from a pool; show or cancel a claim",
        details: "Guests' memory in the range is moved away. The command returns at once; claims \
                  shows the progress, claim NUMBER one claim with the ranges tried. claim cancel NUMBER \
                  cancels a claim and undoes its work.",
        example: "claim video 64M",
        run: claims::claim,
    },
    Command {
        name: "claims",
        parameters: &[optional("stats", Kind::Word(&["stats"]))],
        summary: "list claims and releases, or show their counters and latencies",
        details: "",
        example: "claims stats",
        run: claims::statistics,
    },
    Command {
        name: "release",
        parameters: &[
            required("POOL|NUMBER", Kind::Either(&Kind::Number(1, u32::MAX as u64), &Kind::Pool)),
            optional("SIZE@ADDRESS", Kind::Any("a range like 64M@0x48000000")),
        ],
        summary: "release claimed memory: a claim's range, any range, or all of a pool",
        details: "The memory is scrubbed and lent to guests again.",
        example: "release 3",
        run: claims::release,
    },
    Command {
        name: "console",
        parameters: &[
            optional("NAME|all|front", Kind::Either(&Kind::Console, &Kind::Word(&["all", "front"]))),
            optional("limit", Kind::Word(&["limit"])),
            optional("SIZE", Kind::Size),
        ],
        summary: "list the consoles, switch to one, or limit one",
        details: "all shows every guest's output, each line behind the guest's name; front shows \
                  only the console in front. limit sets how much output is kept while another console is in \
                  front.",
        example: "console alpha",
        run: console::run,
    },
    Command {
        name: "stats",
        parameters: &[optional(
            "GUEST|migration|claims|reset",
            Kind::Either(&Kind::Guest, &Kind::Word(&["migration", "claims", "reset"])),
        )],
        summary: "show the guests' counters: exits, interrupts, time at EL2",
        details: "With a guest: its exits by reason. migration: memory moved, and guests' waiting \
                  times; claims: likewise; both since boot. reset starts the counters again from zero. Time \
                  at EL2 leaves out exits that are answered at once. Text counts from the last reset, JSON \
                  always from boot.",
        example: "stats alpha",
        run: stats::run,
    },
    Command {
        name: "top",
        parameters: &[optional("SECONDS", Kind::Number(1, 3600))],
        summary: "show controllers and guests on a screen that refreshes itself",
        details: "Any key quits.",
        example: "top 5",
        run: top::run,
    },
    Command {
        name: "trace",
        parameters: &[
            optional(
                "GUEST|KIND|on|off",
                Kind::Either(
                    &Kind::Guest,
                    &Kind::Word(&["on", "off", "exit", "inject", "migrate", "claim", "life"]),
                ),
            ),
            optional("COUNT", Kind::Number(1, 4096)),
        ],
        summary: "show the last events, or turn tracing on or off",
        details: "KIND is exit, inject (interrupts), migrate, claim or life (of guests). Each CPU \
                  keeps its last 251 events. Tracing pauses while events are shown.",
        example: "trace exit 20",
        run: trace::run,
    },
    Command {
        name: "cost",
        parameters: &[],
        summary: "measure the time of a log line and of a trace event on this machine",
        details: "Writes a few lines to the log.",
        example: "cost",
        run: cost::run,
    },
    Command {
        name: "log",
        parameters: &[optional("LEVEL", Kind::Level)],
        summary: "show the log, or its lines of at least a level",
        details: "LEVEL is error, warn, info or debug. The last 64 KiB are kept. log= on the \
                  command line chooses the lines to log: log=text,info,vgic=debug.",
        example: "log warn",
        run: log::run,
    },
    Command {
        name: "version",
        parameters: &[],
        summary: "show the version, the uptime, and Ballast's own memory",
        details: "",
        example: "version",
        run: host::version,
    },
    Command {
        name: "watch",
        parameters: &[required("SECONDS", Kind::Number(1, 3600)), required("COMMAND", Kind::Line)],
        summary: "repeat a command until a key is pressed",
        details: "",
        example: "watch 2 guests",
        run: watch::run,
    },
]);

/// The first argument of `claim`.
const CLAIM: Kind =
    Kind::Either(&Kind::Number(1, u32::MAX as u64), &Kind::Either(&Kind::Pool, &Kind::Word(&["cancel"])));

/// The items that nearly every command uses.
mod prelude {
    pub(super) use crate::monitor::failure::{Done, Failure};
    pub(super) use crate::monitor::grammar::{Argument, Arguments};
    pub(super) use crate::monitor::machine::Machine;
    pub(super) use crate::monitor::report::Value;
    pub(super) use crate::monitor::report::Value::{
        Address, Bytes, Count, Flag, Frames, Nanoseconds, Nothing, Numbers, Permille, Ranges, Show, Text,
        Words,
    };
    pub(super) use crate::monitor::session::Session;
    pub(super) use crate::monitor::units::{Compact, Size};
    pub(super) use core::fmt::{self, Write, from_fn};
}
