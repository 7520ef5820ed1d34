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
 * Sizes: -DN= nodes, -DR= writes, -DL= lease in ticks. Everything else is a variant, named where it
 * acts: WITHOUT_… and those like it are errors built in on purpose, and must be found.
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
/* A standby was promoted; the old primary is cut off from it, does not know, and still talks to
 * everybody. Which of the two a statement reaches is open each time: every process has several
 * connections. With synchronous replication nothing the old one writes is acknowledged any more. */
bool split;
byte oldseq;         /* what the old primary says; nothing changes there but by CANCELLED_COMMIT */
bool oldrow[N];
byte oldacked[N];
byte common;         /* writes both histories have */
bool strayed[N];     /* the memory holds a write that only the old primary has */
#define KNOWN(i) (strayed[i] && common < applied[i] -> common : applied[i])
#else
#define KNOWN(i) applied[i]
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
  atomic { REGISTER(i) };
#ifdef FAILOVER
  if
  :: split -> d_step { applied[i] = oldseq; strayed[i] = (oldseq > common) }
  :: d_step { applied[i] = seq; strayed[i] = 0 }
  fi;
#else
  applied[i] = seq;                          /* the first load: a view without a lease */
#endif

follow:
  do
  ::                                         /* catch-up: read, then publish under the lease there is */
#ifdef FAILOVER
     if
     :: split && oldseq >= applied[i] -> d_step { if :: oldseq > common && oldseq > applied[i] -> strayed[i] = 1 :: else fi; applied[i] = oldseq }
     :: split && oldseq < applied[i] -> d_step { lease[i] = 0; strayed[i] = 0; applied[i] = oldseq }   /* went back: load anew, no lease */
     :: seq >= applied[i] -> applied[i] = seq
     :: seq < applied[i] -> d_step { lease[i] = 0; strayed[i] = 0; applied[i] = seq }
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
     :: split ->                             /* the old primary got it */
#ifdef ASYNCHRONOUS
        if :: oldrow[i] && applied[i] == oldseq -> lease[i] = L - age[i] :: else fi;
#endif
        age[i] = L; goto follow
#ifndef BY_NUMBER
     :: row[i] && strayed[i] -> d_step { age[i] = L; lease[i] = 0; applied[i] = seq; strayed[i] = 0 }
     :: row[i] && !strayed[i] && applied[i] == seq
#else
     :: row[i] && applied[i] == seq
#endif
#else
     :: row[i] && applied[i] == seq          /* the statement's snapshot */
#endif
        ->
        if
        :: atomic { row[i] -> acked[i] = applied[i] };       /* the row's lock: the row is there, or nothing is granted */
#ifdef FROM_RECEIPT
           age[i] = 0;
#endif
           d_step {
             lease[i] = L - age[i]; age[i] = L;
#ifdef HEALTHY_FLAG
             healthy[i] = (lease[i] > 0)
#endif
           }
        :: !row[i] -> goto fenced
#ifndef NO_LATE_PACKET
        :: late[i] == 0 -> d_step { late[i] = applied[i] + 1; age[i] = L }   /* given up; it may be executed yet, also at once */
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

#ifdef WAIT_SHORT
#define TERM (L - 1)
#else
#define TERM L
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
#define BEHIND_THERE :: atomic { split && NONE_BEHIND_THERE -> answered[my] = 1 }
#else
#define BEHIND_THERE
#endif
#define AWAIT(r) if \
  :: atomic { NONE_BEHIND -> answered[my] = 1 } \
  :: atomic { !NONE_BEHIND && OVER(r) -> FENCE; answered[my] = 1 } \
  BEHIND_THERE \
  fi
#endif

/* Which writer commits first makes no difference, so they go in order: fewer runs that are the same. */
#ifdef FAILOVER
#define COMMIT seq++; my = seq
#else
#define COMMIT seq == r -> seq++; my = seq
#endif

proctype Writer(byte r) {
  byte my;
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
  atomic { wait[r] = 0; my = 0 }
}

#ifdef REPLAY
/* Somebody asks again with the idempotency key of write 1, whose writer may still wait or be dead. The kept answer
 * is found, and waits on the barrier by its own clock before it is handed out. Both use wait[R-1]: there is
 * one writer less. */
proctype Replay(byte r) {
  byte my;
  atomic { seq >= 1 -> my = 1; wait[r] = TERM };
#ifdef REPLAY_AT_ONCE
  answered[my] = 1;
#else
  AWAIT(r);
#endif
  atomic { wait[r] = 0; my = 0 }
}
#endif

/* One verification. It changes nothing, so one that starts anywhere stands for all of them. Nodes are alike,
 * so one that asks node 0 stands for those that ask another. */
proctype Verification() {
  byte i, k, v;                              /* i stays 0 */
  bool serve;
  atomic {
    if
    :: answered[1] -> k = 1
#if R > 1
    :: answered[2] -> k = 2
#endif
#if R > 2
    :: answered[3] -> k = 3
#endif
    fi;
#ifdef ONE_STEP
    /* The same without the pauses: the later the clock is read, the less is served. For the large run. */
    assert(lease[i] == 0 || KNOWN(i) >= k);
    k = 0; goto done
#endif
  };
#if defined(CHECK_AFTER)
  v = KNOWN(i);
  serve = (lease[i] > 0);                    /* against a lease loaded after the look-up */
#elif defined(HEALTHY_FLAG)
  serve = healthy[i];
  v = KNOWN(i);
#else
  d_step { held = lease[i]; v = KNOWN(i) };  /* 1. the view, lease and memory, by one load. 2. The look-up: what it
                                                finds is what the view had, the worst case, or newer. */
  serve = (held > 0);                        /* 3. the clock, against the lease of 1 */
#endif
  if
  :: serve
  :: !serve -> v = seq                       /* the slow path: the primary */
#ifdef SLOW_READS_OLD
  :: !serve && split -> v = oldseq
#endif
  fi;
  assert(v >= k);
done:
  atomic { held = 0; k = 0; v = 0; serve = 0 }
}

#ifdef HEALTHY_FLAG
proctype Watch(byte i) {
  do
  :: atomic { lease[i] == 0 && healthy[i] -> healthy[i] = 0 }
  od
}
#endif

#ifdef FAILOVER
proctype Promote() {
  byte i;
  d_step {
    split = 1; oldseq = seq; common = seq;
    do
    :: i < N -> oldrow[i] = row[i]; oldacked[i] = acked[i]; i++
    :: else -> break
    od;
    i = 0
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
#ifdef FAILOVER
    run Promote();
#endif
    i = 0
  }
}
