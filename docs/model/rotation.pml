/*
 * Rotation of the master key on several nodes (R10). What the variants mean is in README.md.
 *
 * A node has a file of master keys that somebody edits at any time, in any order, and keys in
 * memory. The database names the key that it is authenticated under. Keys are bits: OLD and NEW;
 * where both are in a file, NEW is the first.
 *
 *   I1  A node that holds a lease has the key that the database names, so it can read what comes.
 *   I2  When a write is answered, every node that holds a lease has applied it.
 *   I3  No node calls what Keyward wrote forged.
 */
#ifndef N
#define N 2
#endif
#ifndef W
#define W 2
#endif
#define OLD 1
#define NEW 2
#define REVISIONS 5

byte sign = OLD;        /* what the database names */
byte rev;               /* its revision */
byte key[REVISIONS];    /* that the row of a revision is under; 0 = of the switch, which has none */
bool writing;           /* a write is not answered yet */
byte writes;
byte answered;          /* the last write that was answered */

byte file[N] = OLD;     /* the source of a node's keys */
byte has[N] = OLD;      /* what it has in memory */
byte adv[N];            /* what its row says it has */
bool row[N];            /* it is registered */
bool lease[N];
bool sees[N];           /* it is about to register: it has seen that it has the database's key */
byte going[N];          /* keys it is about to drop */
bool free[N];           /* it has found that nothing needs them */
byte applied[N];        /* the revision its memory is at */
bool dead[N];           /* it stands still, until somebody restarts it */

byte used;              /* by check and needed, within one step */
byte x;

/* Conditions over all nodes. */
#if N == 2
#define ALL(p) (p(0) && p(1))
#else
#define ALL(p) (p(0) && p(1) && p(2))
#endif
#define SAYS_NEW(n) (!row[n] || (adv[n] & NEW))
#define AT_REV(n) (!lease[n] || applied[n] >= rev)

#ifdef LEASE_WITHOUT_THE_KEY
#define SAYS_IT_HAS_THE_KEY(n) true
#else
#define SAYS_IT_HAS_THE_KEY(n) ((adv[n] & sign) != 0)
#endif

#if defined(SWITCHES_AT_ONCE) || defined(CHECKS_BEFORE_THE_LOCK)
#define MAY_SWITCH true
#else
#define MAY_SWITCH ALL(SAYS_NEW)
#endif

#ifdef DROPS_A_KEY_IN_USE
#define DROPS true
#else
#define DROPS false
#endif

/* check holds I1 and I2 against the state that a step has left. */
inline check() {
	x = 0;
	do
	:: x < N ->
		assert(!lease[x] || (has[x] & sign));                    /* I1 */
		assert(!lease[x] || applied[x] >= answered);             /* I2 */
		x++
	:: else -> break
	od;
	x = 0
}

/* needed sets used to the keys without which something in the database cannot be read. */
inline needed() {
	used = sign;
	x = 1;
	do
	:: x <= rev -> used = used | key[x]; x++
	:: else -> break
	od;
	x = 0
}

proctype node(byte i) {
	do
	/* Register: it reads which key the database names, and inserts its row a while later. */
	:: d_step { !dead[i] && !row[i] && !sees[i] && (has[i] & sign) -> sees[i] = true }
	:: d_step {
		!dead[i] && sees[i] ->
		sees[i] = false;
		row[i] = true;
		adv[i] = has[i] & ~going[i];
		applied[i] = 0
	   }

	/* Apply the next revision, under a state that opens. */
	:: atomic {
		!dead[i] && row[i] && applied[i] < rev ->
		if
		:: (has[i] & sign) && (key[applied[i] + 1] == 0 || (has[i] & key[applied[i] + 1])) -> applied[i]++
		:: else ->
			assert(!lease[i]);                               /* a node that serves never closes */
#ifdef UNKNOWN_IS_FORGED
			assert(false)                                    /* I3 */
#endif
		fi
	   }

	/* Renew. */
	:: d_step {
		!dead[i] && row[i] && !lease[i] && applied[i] == rev && SAYS_IT_HAS_THE_KEY(i) ->
		lease[i] = true;
		check()
	   }

	/* Read the file again. A key is added at once. One that goes is no longer claimed first;
	   then nothing must need it. */
	:: d_step {
		!dead[i] && !going[i] && has[i] != file[i] && (has[i] & ~file[i]) == 0 ->
		has[i] = file[i];
		check()
	   }
	:: d_step {
		!dead[i] && !going[i] && (has[i] & ~file[i]) != 0 ->
		needed();
		if
		:: (has[i] & ~file[i] & used) == 0 || DROPS ->
			going[i] = has[i] & ~file[i];
#ifndef DROPS_WHAT_IT_CLAIMS
			adv[i] = adv[i] & ~going[i]
#endif
		:: else -> skip
		fi;
		used = 0
	   }
	:: d_step {
		!dead[i] && going[i] && !free[i] ->
		needed();
		if
		:: (going[i] & used) == 0 || DROPS -> free[i] = true
		:: else -> going[i] = 0
		fi;
		used = 0
	   }
	:: d_step {
		!dead[i] && free[i] ->
		has[i] = has[i] & ~going[i];
		going[i] = 0;
		free[i] = false;
		check()
	   }

	/* Say so. */
#ifdef ADVERTISES_THE_FILE
	:: d_step { !dead[i] && row[i] && !going[i] && adv[i] != file[i] -> adv[i] = file[i] }
#else
	:: d_step { !dead[i] && row[i] && !going[i] && adv[i] != has[i] -> adv[i] = has[i] }
#endif

	/* Somebody edits its file: in the documented order, and in every other. */
	:: d_step { !(file[i] & NEW) -> file[i] = file[i] | NEW }
	:: d_step { !(file[i] & OLD) -> file[i] = file[i] | OLD }
	:: d_step { file[i] == (OLD | NEW) -> file[i] = NEW }
	:: d_step { file[i] == (OLD | NEW) -> file[i] = OLD }

	/* Write, under the lock. */
	:: d_step {
		writes < W && !writing && row[i] && !dead[i] && (has[i] & sign) ->
		writing = true;
		writes++;
		rev++;
#ifdef SIGNS_BY_THE_FILE
		if
		:: has[i] & NEW -> sign = NEW
		:: else -> sign = OLD
		fi;
#endif
		key[rev] = sign;
		check()
	   }

	/* It is restarted, or stands still. */
	:: d_step {
		lease[i] = false;
		row[i] = false;
		sees[i] = false;
		adv[i] = 0;
		applied[i] = 0;
		dead[i] = false;
		going[i] = 0;
		free[i] = false;
		has[i] = file[i]
	   }
	:: d_step { !dead[i] -> dead[i] = true }
	od
}

/* Answers one write after the other. A node that stands still is fenced once its lease is over. */
active proctype writer() {
end:
	do
	:: d_step { writing && ALL(AT_REV) -> answered = rev; writing = false; check() }
	:: d_step {
		writing && !(ALL(AT_REV)) ->
		x = 0;
		do
		:: x < N ->
			if
			:: dead[x] && lease[x] && applied[x] < rev -> lease[x] = false; row[x] = false
			:: else -> skip
			fi;
			x++
		:: else -> break
		od;
		x = 0
	   }
	od
}

/* The rotation. */
active proctype rotator() {
#ifdef CHECKS_BEFORE_THE_LOCK
	d_step { ALL(SAYS_NEW) };
#endif
	d_step {
		sign == OLD && MAY_SWITCH -> sign = NEW;
#ifndef SWITCH_HAS_NO_REVISION
		rev++;
		key[rev] = 0;
#endif
		check()
	};
	/* Rows are authenticated again one by one. */
end:
	do
	:: d_step {
		rev >= 1 && key[1] == OLD -> key[1] = NEW
	   }
	:: d_step {
		rev >= 2 && key[2] == OLD -> key[2] = NEW
	   }
	:: d_step {
		rev >= 3 && key[3] == OLD -> key[3] = NEW
	   }
	od
}

init {
	atomic {
		run node(0);
		run node(1);
#if N == 3
		run node(2);
#endif
	}
}
