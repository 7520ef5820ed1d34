// Package seal holds the master keys and everything derived from them: the seals on
// rows, the seal on the database's state, the sealing of kept answers and the audit
// chain's authenticators (design promises P4, P5, P8). It knows no table and no rule.
//
// Every use has its own HKDF-SHA-256 child of a master key (RFC 5869), named by its info
// string, so that no output of one use means anything to another. A master key itself is
// forgotten once its children are derived.
package seal
