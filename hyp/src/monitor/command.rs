//! The commands.

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
        details: "Tab completes commands and arguments, the arrow keys bring back earlier lines, Ctrl-C ends \
                  what is running. Every command takes --json (one object on one line), --exact (no \
                  rounded sizes) and --help. Ctrl-] ? lists the keys that switch consoles.",
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
        summary: "show a guest, its device tree, or what backs its RAM",
        details: "tree prints the tree that the guest gets, as source. map lists its RAM, and behind which \
                  controllers it lies in units of which size; in JSON, too.",
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
        summary: "stop a guest at once and free what it has",
        details: "The guest is not asked: type poweroff in it to end it in good order.",
        example: "stop alpha",
        run: guests::stop,
    },
    Command {
        name: "reset",
        parameters: &[required("GUEST", Kind::Guest)],
        summary: "start a guest afresh from its images, whatever it does",
        details: "",
        example: "reset alpha",
        run: guests::reset,
    },
    Command {
        name: "cpus",
        parameters: &[],
        summary: "list the CPUs and the vCPUs that they belong to",
        details: "",
        example: "cpus",
        run: host::cpus,
    },
    Command {
        name: "controllers",
        parameters: &[],
        summary: "list the memory controllers: ranges, and who has how much of them",
        details: "",
        example: "controllers --exact",
        run: host::controllers,
    },
    Command {
        name: "mem",
        parameters: &[],
        summary: "show how much RAM there is and what it is used for",
        details: "Pools are lent to guests, and so counted among Guests and Free too. MovableOnly is what lies in zone MOVABLE, the designated movable blocks.",
        example: "mem --exact",
        run: memory::mem,
    },
    Command {
        name: "zones",
        parameters: &[],
        summary: "list the zones, as a whole and behind each controller",
        details: "NORMAL holds what Ballast cannot move, MOVABLE guests' RAM alone. Their spans may overlap; \
                  every frame is present in one.",
        example: "zones",
        run: memory::zones,
    },
    Command {
        name: "dmb",
        parameters: &[],
        summary: "list the designated movable blocks and what they are used for",
        details: "LENT is what guests have of a block and Ballast can move away, CLAIMED what the owners of \
                  pools have taken.",
        example: "dmb",
        run: physical::dmb,
    },
    Command {
        name: "buddyinfo",
        parameters: &[],
        summary: "list the free blocks of each zone and controller by order",
        details: "A block of order N has 2^N frames of 4 KiB: 9 is 2 MiB, 18 is 1 GiB.",
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
        summary: "walk the whole frame table and prove that the books are right",
        details: "Every frame is in one block, one zone and one state; the counters and free lists are what \
                  is found; guests' blocks appear where the reverse map says.",
        example: "check",
        run: physical::check,
    },
    Command {
        name: "map",
        parameters: &[optional("CONTROLLER", Kind::Controller)],
        summary: "draw what lies where behind a controller, or all",
        details: "A character stands for 2 MiB, or for more behind large controllers.",
        example: "map mc0",
        run: memory::map,
    },
    Command {
        name: "frame",
        parameters: &[required("ADDRESS", Kind::Number(0, u64::MAX))],
        summary: "show everything known of the frame at a physical address",
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
        details: "REGION is all, dmbs (its designated movable blocks), dmb0 (the first of them), ram0 (the first \
                  other region), or a range like 64M@0x48000000 as the guest sees it. The command returns at \
                  once: see jobs. --force moves a region to a controller that its strict placement excludes; the \
                  placement stays as it is.",
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
        summary: "tie a region of a guest to controllers, and move there what lies elsewhere",
        details: "CONTROLLERS are names with commas between. Later allocations for the region obey. strict: there or not at all, the default; preferred: elsewhere if \
                  there is nothing left; interleave: in turns of 2 MiB, in proportion to what is free; what lies behind one of them \
                  already is spread, too. REGION as for migrate, but whole ones.",
        example: "pin alpha all mc0,mc1 interleave",
        run: migrate::pin,
    },
    Command {
        name: "unpin",
        parameters: &[required("GUEST", Kind::Guest), optional("REGION", Kind::Region)],
        summary: "let the configuration say again where a region lies",
        details: "Nothing moves. REGION as for pin; without it, all.",
        example: "unpin alpha",
        run: migrate::unpin,
    },
    Command {
        name: "evacuate",
        parameters: &[required("CONTROLLER", Kind::Controller)],
        summary: "move all guests' memory off a controller, which then takes no allocations",
        details: "The answer lists what will stay, and why. A controller that takes no allocations is closed; once \
                  nothing behind it is in use, it is evacuated, as controllers says. restore lets it take \
                  allocations again.",
        example: "evacuate mc1",
        run: evacuate::evacuate,
    },
    Command {
        name: "restore",
        parameters: &[required("CONTROLLER", Kind::Controller)],
        summary: "let a controller take allocations again",
        details: "",
        example: "restore mc1",
        run: evacuate::restore,
    },
    Command {
        name: "balance",
        parameters: &[optional("free|bytes|heat", Kind::Word(&["free", "bytes", "heat"]))],
        summary: "shift guests' memory so that the controllers carry alike",
        details: "free: as much free memory behind each (the default); bytes: as much of guests; heat: as much that \
                  guests touch, watched for a second. What differs by an eighth of the mean counts as even, a quarter \
                  of the heat; twice that for heat to go back. Pins and placements hold, and jobs have to be over.",
        example: "balance heat",
        run: balance::run,
    },
    Command {
        name: "heat",
        parameters: &[optional("SECONDS", Kind::Number(1, 60))],
        summary: "watch for some seconds how much of their memory guests touch",
        details: "By the access flags of stage 2, so by units: a unit that is touched counts whole. Each unit is looked \
                  at twice, which the report says the cost of; on CPUs that do not keep the flags, the first access \
                  to each is a fault beside.",
        example: "heat 5",
        run: heat::run,
    },
    Command {
        name: "retire",
        parameters: &[required("ADDRESS", Kind::Number(0, u64::MAX)), optional("SIZE", Kind::Size)],
        summary: "take frames out of use for good, and move what stands on them",
        details: "For memory that fails. Guests' memory on it is moved, and the frames are retired then; the answer \
                  lists what has to wait, for a claim or a guest's end, and what Ballast keeps.",
        example: "retire 0xbfff0000 64K",
        run: retire::retire,
    },
    Command {
        name: "jobs",
        parameters: &[],
        summary: "list the migrations: those that wait, run, and the last that ended",
        details: "",
        example: "watch 1 jobs",
        run: jobs::list,
    },
    Command {
        name: "job",
        parameters: &[required("NUMBER", Kind::Number(1, u32::MAX as u64))],
        summary: "show a migration: progress, rate, and what stayed, and why",
        details: "jobs lists the numbers.",
        example: "job 3",
        run: jobs::show,
    },
    Command {
        name: "pause",
        parameters: &[required("NUMBER", Kind::Number(1, u32::MAX as u64))],
        summary: "let a migration rest, at a clean unit",
        details: "",
        example: "pause 3",
        run: jobs::pause,
    },
    Command {
        name: "resume",
        parameters: &[required("NUMBER", Kind::Number(1, u32::MAX as u64))],
        summary: "let a paused migration go on",
        details: "",
        example: "resume 3",
        run: jobs::resume,
    },
    Command {
        name: "cancel",
        parameters: &[required("NUMBER", Kind::Number(1, u32::MAX as u64))],
        summary: "end a migration, at a clean unit",
        details: "What has moved stays where it is.",
        example: "cancel 3",
        run: jobs::cancel,
    },
    Command {
        name: "rate",
        parameters: &[
            optional("limit|slice|share|stall", Kind::Word(&["limit", "slice", "share", "stall"])),
            optional("VALUE", Kind::Either(&Kind::Size, &Kind::Word(&["off"]))),
        ],
        summary: "show or set how fast migration goes and what it may take from guests",
        details: "limit: bytes a second, at least 64K, or off. slice: for how many us a CPU is held. share: per cent of a \
                  guest's time, where no CPU is idle. stall: a guest that writes \
                  to a 2 MiB unit waits if at most so much of it is left to copy; else the unit is split.",
        example: "rate limit 100M",
        run: rate::rate,
    },
    Command {
        name: "pools",
        parameters: &[],
        summary: "list the pools: what is lent, claimed, and can be claimed",
        details: "A pool's memory is lent to guests until its owner claims it.",
        example: "pools",
        run: pools::list,
    },
    Command {
        name: "pool",
        parameters: &[required("POOL", Kind::Pool)],
        summary: "show a pool: what can be claimed now, what is in the way, a map",
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
        summary: "take contiguous memory out of a pool; show or cancel a claim",
        details: "Tenants are moved away. The command returns at once: see claims, and claim NUMBER for one with \
                  its tries. claim cancel NUMBER ends one: what it did is undone.",
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
        summary: "give back what was claimed: a claim's range, any range, or all of a pool",
        details: "It is scrubbed and lent again.",
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
        summary: "list the consoles, or bring one to front",
        details: "all shows every guest's lines behind its name, front only the console in front. limit sets \
                  how much is kept of what a guest prints while another is in front.",
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
        details: "With a guest: its exits by reason. migration: what was moved, and how long guests waited, since \
                  boot; claims: likewise. reset begins to count anew. Time at EL2 leaves out what is answered at once. Text counts since the last reset; JSON counts since boot, \
                  always.",
        example: "stats alpha",
        run: stats::run,
    },
    Command {
        name: "top",
        parameters: &[optional("SECONDS", Kind::Number(1, 3600))],
        summary: "show controllers and guests on a screen that refreshes itself",
        details: "Any key ends it.",
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
        summary: "show the last events, or turn their recording on or off",
        details: "KIND is exit, inject, migrate, claim or life. Each CPU keeps its last 251 events: exits, injected interrupts, migrations, claims, and \
                  guests' lives. Nothing is recorded while they are shown.",
        example: "trace exit 20",
        run: trace::run,
    },
    Command {
        name: "cost",
        parameters: &[],
        summary: "measure what a line of the log and an event of the trace cost here",
        details: "A few lines of the log are written for it.",
        example: "cost",
        run: cost::run,
    },
    Command {
        name: "log",
        parameters: &[optional("LEVEL", Kind::Level)],
        summary: "show the log, or its lines of at least a level",
        details: "LEVEL is error, warn, info or debug. The last 64 KiB are kept. The command line's log= sets what is logged: \
                  log=text,info,vgic=debug.",
        example: "log warn",
        run: log::run,
    },
    Command {
        name: "version",
        parameters: &[],
        summary: "show what is running, since when, and what it takes for itself",
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
