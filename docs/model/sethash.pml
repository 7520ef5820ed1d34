/* What memory is compared with (DESIGN.md, "Memory is proven before it is acknowledged"), for Spin.
 *
 * Somebody writes to the database without the master key. Forged rows do not match their MAC and are not
 * in the model. What is left: at any moment, between any two steps, the table may show any earlier
 * authentic copy of any row, or the real one again. Checked here:
 *
 *     a verification invoked after write k of a row was answered is not decided from an older copy of it.
 *
 * Time is not in it (lease.pml has that): a lease is held or not, and a writer answers once the node has
 * acknowledged, or holds none. One node stands for all, since nodes do not see each other.
 *
 * Sizes: -DK= rows, -DR= writes. Everything else is an error built in on purpose that must be found.
 */
#ifndef K
#define K 2
#endif
#ifndef R
#define R 3
#endif

byte seq;            /* the revision */
byte wrote[K];       /* the write that changed each row last: what the set hash in the authenticated state stands for */
byte shown[K];       /* the copy of each row that the table shows */

byte applied;        /* the node's place in history */
byte memory[K];      /* the copy of each row that its memory has */
bool refused[K];     /* the row was found put back: accepted nowhere */
byte counted[K];     /* what a row counts as in memory's set hash */
bool lease;
bool distrusted;
byte acked;

byte answered[K];    /* the newest answered write of each row */

#define EQUAL(k) (counted[k] == wrote[k])
#if K == 1
#define ALL_EQUAL EQUAL(0)
#else
#define ALL_EQUAL (EQUAL(0) && EQUAL(1))
#endif

active proctype Somebody() {
  byte k, copy;
  do
  :: atomic {                                /* any earlier copy, or the real one */
       if :: k = 0 :: k = K - 1 fi;
       copy = wrote[k];
       do :: copy > 0 -> copy-- :: break od;
       shown[k] = copy; k = 0; copy = 0
     }
  od
}

proctype Writer(byte n) {
  byte my, k;
  if :: k = 0 :: K > 1 -> k = K - 1 fi;
  d_step { seq == n -> seq++; my = seq; wrote[k] = my; shown[k] = my };
  atomic { acked >= my || !lease -> answered[k] = my };
  my = 0; k = 0
}

active proctype Node() {
  byte k;
load: skip;
  d_step {                                   /* one snapshot: a row that is not the one in the set hash is refused, and counts as that one */
    k = 0;
    do
    :: k < K ->
       memory[k] = shown[k];
#ifdef LOAD_BELIEVES
       counted[k] = wrote[k]; refused[k] = 0;
#else
       refused[k] = (shown[k] != wrote[k]); counted[k] = wrote[k];
#endif
       k++
    :: else -> break
    od;
    applied = seq; distrusted = 0; k = 0
  };
  do
  :: d_step {                                /* catch-up: rows of a later revision than applied, and the set hash, in one read */
       k = 0;
       do
       :: k < K ->
          if
          :: shown[k] > applied -> memory[k] = shown[k]; counted[k] = shown[k]; refused[k] = 0
          :: else
          fi;
          k++
       :: else -> break
       od;
       applied = seq; k = 0;
#ifndef NO_COMPARISON
       if :: !ALL_EQUAL -> distrusted = 1; lease = 0 :: else fi
#endif
     }
  :: d_step {                                /* a scrub compares at a moment of its own */
       applied == seq ->
#ifndef NO_COMPARISON
       if :: !ALL_EQUAL -> distrusted = 1; lease = 0 :: else fi
#endif
     }
  :: distrusted -> goto load
  :: atomic { !distrusted && applied == seq -> acked = applied; lease = 1 }
  :: lease = 0                               /* the lease runs out, or the node is fenced */
  od
}

proctype Verification(byte k) {
  byte asked;
  asked = answered[k];
  if
  :: d_step { lease -> assert(refused[k] || memory[k] >= asked) }   /* the view and its lease, by one load */
#ifdef ASKS_ROWS
  :: !lease -> assert(shown[k] >= asked)     /* a row whose MAC is good is believed */
#else
  :: !lease                                  /* no verdict */
#endif
  fi
}

init {
  atomic {
    byte i;
    do :: i < R -> run Writer(i); i++ :: else -> break od;
    run Verification(0);
#if K > 1
    run Verification(K - 1);
#endif
    i = 0
  }
}
