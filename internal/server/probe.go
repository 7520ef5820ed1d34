package server

import (
	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/keys"
)

// probe answers POST /v1/probe. It takes no credential: the question itself is authenticated, and
// its size is bounded before it is opened.
func (s *Server) probe(x *exchange) error {
	var asked api.ProbeQuestion
	if err := x.readJSON(false, field{"master_key_id", &asked.MasterKeyID}, field{"box", &asked.Box}); err != nil {
		return err
	}
	notAsked := keys.Invalid("box", "This is not a question that another node asks this one.")
	if s.cfg.Responder == nil {
		return notAsked
	}
	said, err := s.cfg.Responder.Answer(x.ctx, asked)
	if err != nil {
		return notAsked
	}
	return x.answer(answer{body: said})
}
