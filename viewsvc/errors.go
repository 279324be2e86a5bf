package viewsvc

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Errors of the service, the same on both sides of the wire: a Client's error wraps the sentinel that the
// server answered with. Use errors.Is and errors.As; the text is for people.
var (
	// ErrNoLeader: no view server that could be reached leads. Trying again later is right.
	ErrNoLeader = errors.New("viewsvc: no view server leads")
	// ErrLeaderless: a view server answers, but knows of no leader that does. It wraps nothing; an ErrNoLeader may wrap it.
	ErrLeaderless = errors.New("viewsvc: knows of no leader that answers")
	// ErrForeignCluster: the node belongs to another cluster than the view server. Trying again is useless.
	ErrForeignCluster = errors.New("viewsvc: foreign cluster")
	// ErrDuplicateNode: another process pings under the same node ID.
	ErrDuplicateNode = errors.New("viewsvc: duplicate node")
	// ErrNotFound: no volume, node or replica has that name.
	ErrNotFound = errors.New("viewsvc: not found")
	// ErrExists: the name is taken.
	ErrExists = errors.New("viewsvc: exists already")
	// ErrInvalid: the request makes no sense, or not now; the text says why.
	ErrInvalid = errors.New("viewsvc: invalid request")
	// ErrNotEnoughNodes: too few nodes are alive to create the volume.
	ErrNotEnoughNodes = errors.New("viewsvc: not enough nodes")
	// ErrRolledBack: replicas have seen views that this service has no record of (V9).
	ErrRolledBack = errors.New("viewsvc: the view service lost state")
	// ErrTryAgain: it is being found out; the text says what. Trying again shortly is right.
	ErrTryAgain = errors.New("viewsvc: not known yet")
	// ErrTimeout: an order was not carried out in time; the text says which.
	ErrTimeout = errors.New("viewsvc: timed out")
	// ErrClaimed: another client has the volume to itself; the text says who.
	ErrClaimed = errors.New("viewsvc: attached exclusively")
	// ErrInternal: the server failed; its events say why.
	ErrInternal = errors.New("viewsvc: internal error")
)

// ConflictError rejects a proposal that expected another view than the current one. The proposer adopts
// Current and thinks again; it also gets this for a repeated proposal that was accepted the first time.
type ConflictError struct{ Current View }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("viewsvc: conflict: volume %s is in view %d", e.Current.Volume, e.Current.Num)
}

// RuleError rejects a command that breaks an apply rule. Repeating it is useless.
type RuleError struct {
	Rule string // a number of doc.go, "V3"
	Msg  string
}

func (e *RuleError) Error() string { return "viewsvc: rule " + e.Rule + ": " + e.Msg }

func ruleErrorf(rule, format string, args ...any) error {
	return &RuleError{Rule: rule, Msg: fmt.Sprintf(format, args...)}
}

// errorBody is an error on the wire.
type errorBody struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	View    *View  `json:"view,omitempty"`   // code conflict
	Rule    string `json:"rule,omitempty"`   // code rule
	Leader  string `json:"leader,omitempty"` // code not_leader: where to ask instead
}

// The codes that are not in wireErrors. Part of the API; never rename.
const (
	codeConflict  = "conflict"
	codeRule      = "rule"
	codeNotLeader = "not_leader"
)

// wireErrors maps sentinels to codes and HTTP statuses. Part of the API; never rename a code.
var wireErrors = [...]struct {
	err    error
	code   string
	status int
}{
	{ErrNoLeader, "no_leader", http.StatusServiceUnavailable},
	{ErrForeignCluster, "foreign_cluster", http.StatusConflict},
	{ErrDuplicateNode, "duplicate_node", http.StatusConflict},
	{ErrNotFound, "not_found", http.StatusNotFound},
	{ErrExists, "exists", http.StatusConflict},
	{ErrInvalid, "invalid", http.StatusBadRequest},
	{ErrNotEnoughNodes, "not_enough_nodes", http.StatusConflict},
	{ErrRolledBack, "rolled_back", http.StatusConflict},
	{ErrTryAgain, "try_again", http.StatusServiceUnavailable},
	{ErrTimeout, "timeout", http.StatusGatewayTimeout},
	{ErrClaimed, "claimed", http.StatusConflict},
	{ErrInternal, "internal", http.StatusInternalServerError},
}

// encodeError chooses the status and the body for an error. One that is of no known kind becomes ErrInternal. The code
// says the kind, so that the message travels without the sentinel's words: what is left is for people.
func encodeError(err error) (status int, body errorBody) {
	body.Message = err.Error()
	if c, ok := errors.AsType[*ConflictError](err); ok {
		body.Code, body.View = codeConflict, &c.Current
		return http.StatusConflict, body
	}
	if r, ok := errors.AsType[*RuleError](err); ok {
		body.Code, body.Rule, body.Message = codeRule, r.Rule, r.Msg
		return http.StatusUnprocessableEntity, body
	}
	for _, w := range wireErrors {
		if errors.Is(err, w.err) {
			body.Code, body.Message = w.code, strings.TrimPrefix(body.Message, w.err.Error()+": ")
			return w.status, body
		}
	}
	body.Code = "internal"
	return http.StatusInternalServerError, body
}

// decodeError is the inverse of encodeError. A code of a newer server becomes ErrInternal.
func decodeError(body errorBody) error {
	switch {
	case body.Code == codeConflict && body.View != nil:
		return &ConflictError{Current: *body.View}
	case body.Code == codeRule:
		return &RuleError{Rule: body.Rule, Msg: body.Message}
	}
	kind := ErrInternal
	for _, w := range wireErrors {
		if w.code == body.Code {
			kind = w.err
		}
	}
	return &remoteError{kind: kind, text: body.Message}
}

// remoteError has the server's own words and unwraps to the sentinel.
type remoteError struct {
	kind error
	text string
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.kind }
