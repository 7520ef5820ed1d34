package seal

import "crypto/hmac"

// A probe is one node's question to another about a secret. Only a holder of the master key can
// ask, and only the node it is for can answer, so neither the question nor the answer is of use to
// anybody else.

// SealProbe encrypts and authenticates a question. additional names the node that it is for.
func (s Signer) SealProbe(question, additional []byte) []byte {
	return sealBox(&s.k.probes, probeBoxInfo, question, additional)
}

// OpenProbe is the inverse of SealProbe. ErrBadSeal, ErrUnknownKey. The observer of unknown keys is
// not told: anybody can send a question.
func (r *Ring) OpenProbe(keyID string, box, additional []byte) ([]byte, error) {
	k := r.keys.Load().byID[keyID]
	if k == nil {
		return nil, ErrUnknownKey
	}
	return openBox(&k.probes, probeBoxInfo, box, additional)
}

// SealVerdict authenticates the answer to a question. context names the question and the node.
func (r *Ring) SealVerdict(keyID string, context []byte, verdict string) ([]byte, error) {
	k := r.keys.Load().byID[keyID]
	if k == nil {
		return nil, ErrUnknownKey
	}
	sum := k.verdict(context, verdict)
	return sum[:], nil
}

// CheckVerdict reports whether mac authenticates the answer.
func (s Signer) CheckVerdict(context []byte, verdict string, mac []byte) bool {
	sum := s.k.verdict(context, verdict)
	return hmac.Equal(sum[:], mac)
}

func (k *masterKey) verdict(context []byte, verdict string) [32]byte {
	m := k.verdicts.begin()
	m.text(verdict)
	return m.finish(context)
}
