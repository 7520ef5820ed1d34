/* The protocol "lease, acknowledge, or wait" (DESIGN.md), for Spin.
 *
 * Nodes answer verifications from memory while they hold a lease; every management write (create,
 * revoke, roll, organization change) is answered once no node can answer from before it. Checked here:
 *
 *     a verification invoked after write k was answered is decided from a state that has write k.
 *
 * That is both directions at once. Say write 1 creates a key, write 2 switches its organization off,
 * write 3 switches it on again: version 0 of the memory says unknown, 1 valid, 2 refused, 3 valid. After the
 * create was answered no node says unknown, after the switch-off none says valid, after the switch-on none refuses.
 *
 * Time is unbounded and may pass between any two steps of anybody, so every process, packet and
 * statement may be delayed for any length at any point, and any number of them at once. A crash is a pause
 * that never ends: Spin explores runs in which a process takes no further step. No clock is compared
 * with another machine's; only their rates are taken as equal (the code's wait has a quarter to spare).
 *
 * Wake-ups (NOTIFY) are not in it and need not be: they only make a step come sooner.
 *
 * Sizes: -DN= nodes, -DR= writes, -DL= lease in ticks. Everything else is a variant, explained where it
 * acts: a circumstance, or an error built in on purpose that must be found. README.md says which is which.
 */
#ifndef N
#define N 1
#endif
#ifndef R
#define R 2
#endif
#ifndef L
#define L 2
#endif

/* The database. Every step that touches it is one statement's effect on single rows. */
byte seq;            /* meta.revision: how many writes have committed */
bool row[N];         /* the node's row is there */
byte acked[N];       /* its column applied; 0 also stands for the -1 of a new row, as no write is 0 */
byte late[N];        /* 1 + applied of a renewal that its client gave up on; 0 = none. See Network */

/* The nodes. */
byte applied[N];     /* what the memory shows */
byte lease[N];       /* ticks until the lease is over */
byte age[N];         /* ticks since the clock was read for the renewal under way */
#ifdef HEALTHY_FLAG
bool healthy[N];
#endif

/* The writers. */
byte wait[R];        /* ticks until a writer may fence */
bool answered[R+1];  /* write k was answered */

/* The verification. */
byte held;           /* ticks until the lease it loaded is over */

#ifdef FAILOVER
/* A standby is promoted once. Which of two primaries a statement reaches is open each time, since every process has several
 * connections; a statement belongs to one of them. What the old one is like afterwards:
 *   (nothing said)   synchronous replication. It is cut off, does not know, and still talks to everybody, but nothing it
 *                    commits is acknowledged any more; whatever was acknowledged, the standby has.
 *   ASYNCHRONOUS     it is alive and goes on acknowledging, and the standby may be behind: a state from any earlier time.
 *   OLD_STOPPED      as that, but it was stopped before the standby was promoted.
 *   RESTORED         no standby: a copy from any earlier time was put back, of the same lineage. */
#if defined(OLD_STOPPED) || defined(RESTORED)
#define OLD_THERE false
#else
#define OLD_THERE split
#endif
#if defined(OLD_STOPPED) || defined(RESTORED) || defined(ASYNCHRONOUS)
#define MAY_LOSE 1
#else
#define MAY_LOSE 0
#endif
bool split;          /* it happened; from now on seq, row and acked are the promoted one's */
byte oldseq;         /* the old primary's. Before the split: what the standby has, where that may be behind */
bool oldrow[N];
byte oldacked[N];
byte common;         /* writes both histories have; from the split on */
bool strayed[N];     /* the memory holds a write that only the old history has. Its mark (number and hash) tells the program */
bool settled = 1;    /* the database's note: every lease granted on an earlier lineage is over */
byte seen;           /* ticks until a node has seen the new lineage for a whole wait */
byte unsure;         /* ticks until the process of the writers trusts the rows again, after its own history turned out another */
#define KNOWN(i) (strayed[i] && common < applied[i] -> common : applied[i])
#define LOAD(i) lease[i] = 0; KEEP(i); applied[i] = seq; strayed[i] = 0; NOTICE(i)
#define LOAD_OLD(i) lease[i] = 0; applied[i] = oldseq; strayed[i] = (oldseq > common)
#ifdef RESTORED
#define NOTICE(i) if :: i == HOST -> unsure = TERM :: else fi
#else
#define NOTICE(i) skip
#endif
#else
#define KNOWN(i) applied[i]
#endif

/* Of the verifications, one is followed; it asks node 0. The writers run in the process of the last node. */
byte asked;          /* the newest write that was answered before it began, or any before that one */
#define HOST (N - 1)

#ifdef TOMBSTONES
/* A lost write is a revocation: node 0 refuses the key while its memory has the write, or a tombstone of it. */
bool tombstone[N];
bool refused;        /* node 0 has refused the key, in this process */
#ifdef TOMBSTONE_DROPPED
#define KEEP(i) skip
#else
#define KEEP(i) if :: strayed[i] -> tombstone[i] = 1 :: else fi
#endif
#else
#define KEEP(i) skip
#endif

#ifdef WAIT_SHORT
#define TERM (L - 1)
#else
#define TERM L
#endif

active proctype Time() {
  byte i;
  do
  :: d_step {
       i = 0;
       do
       :: i < N ->
          if :: lease[i] > 0 -> lease[i]-- :: else fi;
          if :: age[i] < L -> age[i]++ :: else fi;
          i++
       :: else -> break
       od;
       i = 0;
       do
       :: i < R -> if :: wait[i] > 0 -> wait[i]-- :: else fi; i++
       :: else -> break
       od;
       if :: held > 0 -> held-- :: else fi;
#ifdef FAILOVER
       if :: seen > 0 -> seen-- :: else fi;
       if :: unsure > 0 -> unsure-- :: else fi;
#endif
       i = 0
     }
  od
}

/* Network: a renewal that timed out at its client may still be at work in the database. PostgreSQL
 * compares the revision in the snapshot of the statement and writes the row later, when it has the row's lock.
 * So what remains of such a statement is: write this number into the row, if the row is still there.
 * (One not yet begun is the same: it succeeds only if its number is the newest, and then it was when it was sent.) */
#ifdef ACK_GOES_BACK
#define TAKES(i, n) row[i]
#else
#define TAKES(i, n) (row[i] && acked[i] <= n)
#endif
#ifndef NO_LATE_PACKET
proctype Network(byte i) {
  do
  :: atomic { late[i] > 0 ->
       if
#ifdef LATE_LEAVE
       :: late[i] == 255 -> row[i] = 0
#endif
       :: late[i] <= R + 1 && TAKES(i, late[i] - 1) -> acked[i] = late[i] - 1
       :: else
       fi;
       late[i] = 0 }
  od
}
#endif

/* Row ids are drawn anew at each registration, so what is late for the old row finds nothing. */
#ifdef SAME_ID
#define REGISTER(i) row[i] = 1; acked[i] = 0
#else
#define REGISTER(i) row[i] = 1; acked[i] = 0; late[i] = 0
#endif

proctype Node(byte i) {
  byte s;
start:
#ifdef TOMBSTONES
  atomic { applied[i] = 0; strayed[i] = 0; tombstone[i] = 0; if :: i == 0 -> refused = 0 :: else fi };
#endif
#ifdef RESTORED
  if :: i == HOST -> unsure = 0 :: else fi;
#endif
#ifndef LOAD_FIRST
  atomic { REGISTER(i) };
#endif
#ifdef FAILOVER
  if
  :: OLD_THERE -> d_step { LOAD_OLD(i) }
  :: d_step { lease[i] = 0; applied[i] = seq; strayed[i] = 0 }
  fi;
#else
  applied[i] = seq;                          /* the first load: a view without a lease */
#endif
#ifdef LOAD_FIRST
  atomic { REGISTER(i) };
#endif

follow:
  do
  ::                                         /* catch-up: read, then publish under the lease there is */
#ifdef FAILOVER
     /* A mark of another history than the server's: load anew, without a lease. */
     if
     :: OLD_THERE -> d_step {
          if
          :: applied[i] <= oldseq && (applied[i] <= common || strayed[i]) -> applied[i] = oldseq; strayed[i] = (oldseq > common)
          :: else -> LOAD_OLD(i)
          fi }
     :: d_step {
          if
#ifdef BY_NUMBER
          :: seq >= applied[i] -> applied[i] = seq
#else
          :: !strayed[i] -> applied[i] = seq
#endif
          :: else -> LOAD(i)
          fi }
     fi
#else
#ifdef CATCH_UP_GRANTS
     age[i] = 0;
#endif
     s = seq;
     d_step {
       applied[i] = s;
#ifdef CATCH_UP_GRANTS
       lease[i] = L - age[i]; age[i] = L;
#endif
       s = 0
     }
#endif
  ::                                         /* renewal */
     age[i] = 0;                             /* the clock is read BEFORE the statement is sent */
#ifdef RENEW_BY_READ
     d_step { s = seq; if :: row[i] -> applied[i] = s; lease[i] = L - age[i] :: else fi };
     if :: row[i] -> acked[i] = s :: !row[i] -> goto fenced fi;
     s = 0; age[i] = L
#else
#ifdef EXTEND_WHILE_BEHIND
     if
     :: atomic { row[i] -> acked[i] = applied[i]; s = seq };
        d_step { applied[i] = s; s = 0; lease[i] = L - age[i]; age[i] = L }
     :: !row[i] -> goto fenced
     fi
#else
     if
#ifdef FAILOVER
     :: OLD_THERE ->                         /* the old primary got it */
#ifdef ASYNCHRONOUS
        if :: oldrow[i] && applied[i] == oldseq -> lease[i] = L - age[i] :: else fi;
#endif
        age[i] = L; goto follow
#ifndef BY_NUMBER
     :: row[i] && strayed[i] -> d_step { age[i] = L; LOAD(i) }
     :: atomic { row[i] && !strayed[i] && applied[i] == seq -> s = split }
#else
     :: atomic { row[i] && applied[i] == seq -> s = split }
#endif
#else
     :: row[i] && applied[i] == seq          /* the statement's snapshot */
#endif
        ->
        if
#ifdef FAILOVER
        :: atomic { split != s -> s = 0; age[i] = L }        /* that server is not the primary any more */
#define SAME split == s &&
#else
#define SAME
#endif
        :: atomic { SAME row[i] -> acked[i] = applied[i]; s = 0 };  /* the row's lock: the row is there, or nothing is granted */
#ifdef FROM_RECEIPT
           age[i] = 0;
#endif
           d_step {
             lease[i] = L - age[i]; age[i] = L;
#ifdef HEALTHY_FLAG
             healthy[i] = (lease[i] > 0)
#endif
           }
        :: SAME !row[i] -> goto fenced
#ifndef NO_LATE_PACKET
        :: atomic { SAME late[i] == 0 -> late[i] = applied[i] + 1; age[i] = L; s = 0 }   /* given up; it may be executed yet, also at once */
#endif
        fi
     :: row[i] && applied[i] != seq -> age[i] = L                            /* lagging */
     :: !row[i] -> goto fenced
     fi
#endif
#endif
#ifndef NO_LEAVE
  ::                                         /* leave: the view is closed first; then the process starts anew */
#ifdef LEAVE_ROW_FIRST
     row[i] = 0; lease[i] = 0;
#else
     lease[i] = 0;
#ifdef LATE_LEAVE
     if :: row[i] = 0 :: late[i] == 0 -> late[i] = 255 fi;
#else
     row[i] = 0;
#endif
#endif
     goto start
#endif
  od;

fenced:                                      /* register anew; memory and view stay */
  atomic { s = 0; age[i] = L; REGISTER(i) };
  goto follow
}

#define OK(i) (!row[i] || acked[i] >= my)
#define OLDOK(i) (!oldrow[i] || oldacked[i] >= my)
#define CUT(i) if :: !OK(i) -> row[i] = 0 :: else fi
#if N == 1
#define NONE_BEHIND OK(0)
#define NONE_BEHIND_THERE OLDOK(0)
#define FENCE CUT(0)
#else
#define NONE_BEHIND (OK(0) && OK(1))
#define NONE_BEHIND_THERE (OLDOK(0) && OLDOK(1))
#define FENCE CUT(0); CUT(1)
#endif

/* Await, until write my may be answered. Its clock runs from when the commit returned; here that is the
 * commit itself, the worst case. Reading who is behind, fencing, and answering are one step
 * for the same reason: every step in between would only make the answer later. */
#ifdef ANSWER_AT_ONCE
#define AWAIT(r) answered[my] = 1
#else
#ifdef FENCE_AT_ONCE
#define OVER(r) true
#else
#define OVER(r) (wait[r] == 0)
#endif
#ifdef BEHIND_READS_OLD
#define BEHIND_THERE :: atomic { OLD_THERE && NONE_BEHIND_THERE -> answered[my] = 1 }
#else
#define BEHIND_THERE
#endif
#ifdef FAILOVER
/* On a lineage that is not settled nobody is answered early: the rows of nodes that hold a lease may be lost. Who has waited the
 * whole wait after a commit on that lineage settles it. A commit on the old primary proves nothing about when the new one began. */
#ifdef EARLY_ON_NEW_TIMELINE
#define TRUSTED (unsure == 0)
#else
#define TRUSTED (settled && unsure == 0)
#endif
#ifdef SETTLED_BY_EARLIER_WRITE
#define SETTLE settled = 1
#else
#define SETTLE if :: on == split -> settled = 1 :: else fi
#endif
#ifdef RESTORED
/* A restored copy has no new lineage to show. So the writers' own node must have acknowledged, in this history. */
#ifdef OWN_ROW_MAY_LACK
#define EARLY (NONE_BEHIND && TRUSTED)
#else
#define EARLY (NONE_BEHIND && TRUSTED && row[HOST])
#endif
#else
#define EARLY (NONE_BEHIND && TRUSTED)
#endif
#define HERE (on == split || my <= common) &&     /* the write is in the primary's history */
/* A write that was lost is answered with an error, or it counts as lost after its answer. */
#ifdef FENCE_ACROSS
#define LOST :: atomic { split && !on && my > common && wait[r] == 0 -> FENCE; goto done }
#else
#define LOST :: atomic { split && !on && my > common -> goto done }
#endif
#else
#define EARLY NONE_BEHIND
#define SETTLE skip
#define HERE
#define LOST
#endif
#define AWAIT(r) if \
  :: atomic { HERE EARLY -> answered[my] = 1 } \
  :: atomic { HERE !EARLY && OVER(r) -> FENCE; SETTLE; answered[my] = 1 } \
  BEHIND_THERE \
  LOST \
  fi
#endif

/* Which writer commits first makes no difference, so they go in order: fewer runs that are the same. */
#ifdef FAILOVER
#define COMMIT seq++; my = seq; on = split
#else
#define COMMIT seq == r -> seq++; my = seq
#endif

proctype Writer(byte r) {
  byte my;
#ifdef FAILOVER
  bool on;                                   /* which primary has the commit: 1 = the promoted one */
#endif
#ifdef CANCELLED_COMMIT
  /* The old primary got it. Its commit waits for the standby until somebody cancels the wait; then the
   * write is there for all to see, and the answer is a warning, which counts as unknown. */
  if
  :: atomic { split -> oldseq++; goto done }
  :: true
  fi;
#endif
#if defined(LIST_BEFORE_COMMIT)
  bool none;
  atomic { my = r + 1; none = NONE_BEHIND };
  atomic { COMMIT; wait[r] = TERM };
  if :: none -> answered[my] = 1 :: !none -> AWAIT(r) fi;
#elif defined(CLOCK_BEFORE_COMMIT)
  wait[r] = TERM;
  atomic { COMMIT };
  AWAIT(r);
#else
  atomic { COMMIT; wait[r] = TERM };
  AWAIT(r);
#endif
done:
#ifdef FAILOVER
  atomic { wait[r] = 0; my = 0; on = 0 }
#else
  atomic { wait[r] = 0; my = 0 }
#endif
}

#ifdef FAILOVER
/* A node that has seen the new lineage for a whole wait by its own clock settles it too. The clock is read after the answer
 * that shows the lineage. Nodes are alike, so one stands for all. */
proctype Settler() {
#ifdef SEEN_FROM_SENDING
  seen = TERM;
  split;
#else
  atomic { split -> seen = TERM };
#endif
  seen == 0 -> settled = 1
}
#endif

#ifdef LAZY_RENEWALS
/* Renewals do not wait for the disk. The database crashes once and starts anew, and what the rows acknowledged goes back to anything
 * earlier; whatever else was answered is there. */
proctype Crash() {
  byte i;
  atomic {
    do
    :: i < N && acked[i] > 0 -> acked[i]--
    :: i < N -> late[i] = 0; i++
    :: i >= N -> break
    od;
    i = 0
  }
}
#endif

#ifdef REPLAY
/* Somebody asks again with the idempotency key of write 1, whose writer may still wait or be dead. The kept answer
 * is found, and waits on the barrier by its own clock before it is handed out. Both use wait[R-1]: there is
 * one writer less. */
proctype Replay(byte r) {
  byte my;
#ifdef FAILOVER
  bool on;
  atomic { seq >= 1 -> my = 1; on = split; wait[r] = TERM };
#else
  atomic { seq >= 1 -> my = 1; wait[r] = TERM };
#endif
#ifdef REPLAY_AT_ONCE
  answered[my] = 1;
#else
  AWAIT(r);
#endif
done:
  atomic { wait[r] = 0; my = 0 }
}
#endif

/* One verification. It changes nothing, so one that starts anywhere stands for all of them. Nodes are alike,
 * so one that asks node 0 stands for those that ask another.
 * TOKEN: it carries the revision of the write it knows of. CLOCK_LIES: a lease that is over may look good. */
#ifdef TOKEN
#define AS_NEW(n) (n >= asked)
#else
#define AS_NEW(n) true
#endif
#ifdef CLOCK_LIES
#define GOOD(ticks) true
#else
#define GOOD(ticks) (ticks > 0)
#endif

proctype Verification() {
  byte i, v;                                 /* i stays 0 */
  bool serve;
  atomic {
    if
    :: answered[1] -> asked = 1
#if R > 1
    :: answered[2] -> asked = 2
#endif
#if R > 2
    :: answered[3] -> asked = 3
#endif
    fi;
#ifdef ONE_STEP
    /* The same without the pauses: the later the clock is read, the less is served. For the large run. */
    assert(!GOOD(lease[i]) || !AS_NEW(applied[i]) || KNOWN(i) >= asked);
    asked = 0; goto done
#endif
  };
#if defined(CHECK_AFTER)
  v = KNOWN(i);
  serve = (lease[i] > 0);                    /* against a lease loaded after the look-up */
#elif defined(HEALTHY_FLAG)
  serve = healthy[i];
  v = KNOWN(i);
#else
  /* 1. the view, lease and memory, by one load. 2. The look-up: what it finds is what the view had, the worst case, or newer. */
  d_step { held = lease[i]; v = KNOWN(i); serve = AS_NEW(applied[i]) };
  serve = serve && GOOD(held);               /* 3. the clock, against the lease of 1 */
#endif
  /* Without a lease it waits, bounded, and does the same again: one that starts later stands for that. */
  assert(!serve || v >= asked);
done:
  atomic { held = 0; asked = 0; v = 0; serve = 0 }
}

#ifdef TOMBSTONES
/* What node 0 refused it never accepts again, whichever database it follows. */
proctype Sticky() {
  do
  :: atomic { strayed[0] && !refused -> refused = 1 }
  :: atomic { refused && !strayed[0] && !tombstone[0] -> assert(false) }
  od
}
#endif

#ifdef HEALTHY_FLAG
proctype Watch(byte i) {
  do
  :: atomic { lease[i] == 0 && healthy[i] -> healthy[i] = 0 }
  od
}
#endif

#ifdef FAILOVER
proctype Promote() {
  byte i, n;
  bool there;
#if MAY_LOSE
  d_step {                                   /* the last the standby received */
    oldseq = seq;
    do
    :: i < N -> oldrow[i] = row[i]; oldacked[i] = acked[i]; i++
    :: else -> break
    od;
    i = 0
  };
#endif
  d_step {
#if MAY_LOSE
    n = seq; seq = oldseq; oldseq = n; common = seq;
#else
    oldseq = seq; common = seq;
#endif
#ifndef RESTORED
    settled = 0;
#endif
    do
    :: i < N ->
#if MAY_LOSE
       there = row[i]; row[i] = oldrow[i]; oldrow[i] = there;
       n = acked[i]; acked[i] = oldacked[i]; oldacked[i] = n;
#else
       oldrow[i] = row[i]; oldacked[i] = acked[i];
#endif
#if defined(OLD_STOPPED) || defined(RESTORED)
       oldrow[i] = 0; oldacked[i] = 0;
#endif
       strayed[i] = (applied[i] > common);
       late[i] = 0;
       i++
    :: else -> break
    od;
    /* What is lost, is lost: of that nothing is promised. */
    i = common + 1;
    do
    :: i <= R -> answered[i] = 0; i++
    :: else -> break
    od;
    if :: asked > common -> asked = 0 :: else fi;
#if defined(OLD_STOPPED) || defined(RESTORED)
    oldseq = 0;
#endif
    split = 1; i = 0; n = 0; there = 0
  }
}
#endif

init {
  atomic {
    byte i;
    do
    :: i < N ->
       age[i] = L;
       run Node(i);
#ifndef NO_LATE_PACKET
       run Network(i);
#endif
#ifdef HEALTHY_FLAG
       run Watch(i);
#endif
       i++
    :: else -> break
    od;
    i = 0;
#ifdef REPLAY
    run Replay(R - 1);
    do :: i < R - 1 -> run Writer(i); i++ :: else -> break od;
#else
    do :: i < R -> run Writer(i); i++ :: else -> break od;
#endif
    run Verification();
#ifdef LAZY_RENEWALS
    run Crash();
#endif
#ifdef FAILOVER
    run Promote();
    run Settler();
#ifdef TOMBSTONES
    run Sticky();
#endif
#endif
    i = 0
  }
}
