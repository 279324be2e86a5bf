package nbd_test

// What other servers are known to do otherwise, as of the versions in Debian 12.

// nbdkit 1.32 with its memory plugin, which serves the same disk under every name.
var nbdkitFailures = map[string]string{
	"DISC ends the connection after what is pending":          "what is pending may get ESHUTDOWN",
	"EXPORT_NAME of an unknown export closes":                 "any name is an export",
	"LIST names the export":                                   "it lists the default export only",
	"INFO of an unknown export gets ERR_UNKNOWN":              "any name is an export",
	"GO to an unknown export gets ERR_UNKNOWN":                "any name is an export",
	"SET_META_CONTEXT for an unknown export gets ERR_UNKNOWN": "any name is an export",
	"block sizes make sense":                                  "the plugin has none to tell",
	"name and description are told when asked for":            "the plugin has no description",
	"BLOCK_STATUS never tells of more than was asked":         "it tells of the whole page of its memory",
	"space that NO_HOLE keeps is no hole":                     "zeroed pages are given back",
	"overlapping writes at the same time are not torn":        "requests are done page by page",
}

// qemu-nbd 7.2 with a raw file.
var qemuFailures = map[string]string{
	"DISC ends the connection after what is pending":     "it closes at once",
	"writing past the end gets ENOSPC":                   "EINVAL",
	"writing at an offset that wraps around gets ENOSPC": "EINVAL",
	"writing zeroes past the end gets ENOSPC":            "EINVAL",
	"a refused write changes nothing":                    "EINVAL",
	"space that NO_HOLE keeps is no hole":                "unwritten extents of a file are holes",
	"a payload of 48 MiB is taken and given":             "its limit is 32 MiB",
	"a half-closed peer gets its pending replies":        "it closes at once",
	"a bad request magic ends the connection":            "it answers EINVAL and closes then",
	"overlapping writes at the same time are not torn":   "requests are done at the same time",
}

const (
	noStructured = "nbd-server has no structured replies"
	noCheck      = "nbd-server does not check the data of options"
)

// nbd-server 3.24 with a file.
var nbdServerFailures = map[string]string{
	"drops a client with unknown flags":                                "it goes on",
	"LIST with data gets ERR_INVALID":                                  noCheck,
	"ABORT is acknowledged, then the end":                              "it closes at once",
	"INFO tells size and flags, and the handshake goes on":             "the size is told as 0",
	"GO with a name beyond the option gets ERR_INVALID":                noCheck,
	"GO with bytes left over gets ERR_INVALID":                         noCheck,
	"GO with fewer requests than counted gets ERR_INVALID":             noCheck,
	"block sizes make sense":                                           "it tells none",
	"name and description are told when asked for":                     "it tells none",
	"DF is offered with structured replies only":                       noStructured,
	"STRUCTURED_REPLY with data gets ERR_INVALID":                      noStructured,
	"SET_META_CONTEXT before structured replies gets ERR_INVALID":      noStructured,
	"STRUCTURED_REPLY a second time is answered in step":               noStructured,
	"SET_META_CONTEXT for an unknown export gets ERR_UNKNOWN":          noStructured,
	"BLOCK_STATUS past the end gets EINVAL":                            noStructured,
	"a name of 5000 bytes is refused in step":                          "it answers nothing",
	"LIST_META_CONTEXT without queries lists base:allocation":          noStructured,
	"LIST_META_CONTEXT takes base: for all of the namespace":           noStructured,
	"LIST_META_CONTEXT takes a full name":                              noStructured,
	"LIST_META_CONTEXT ignores an unknown namespace":                   noStructured,
	"LIST_META_CONTEXT ignores an unknown leaf":                        noStructured,
	"SET_META_CONTEXT selects base:allocation":                         noStructured,
	"SET_META_CONTEXT ignores an unknown namespace":                    noStructured,
	"SET_META_CONTEXT ignores an unknown leaf":                         noStructured,
	"SET_META_CONTEXT ignores base:":                                   noStructured,
	"SET_META_CONTEXT without queries selects nothing":                 noStructured,
	"SET_META_CONTEXT with a query beyond the option gets ERR_INVALID": noStructured,
	"BLOCK_STATUS after SET_META_CONTEXT was undone gets EINVAL":       noStructured,
	"options may come in any pieces":                                   noStructured,
	"options may come all at once":                                     noStructured,
	"an option of 4 GiB is not waited for":                             "it is",
	"a structured read covers its range":                               noStructured,
	"a read with DF comes in one chunk":                                noStructured,
	"FAST_ZERO is done or refused with ENOTSUP":                        "it is not offered",
	"a structured error is in form":                                    noStructured,
	"BLOCK_STATUS covers a part of the range from its start":           noStructured,
	"BLOCK_STATUS with REQ_ONE tells one extent within the request":    noStructured,
	"BLOCK_STATUS tells holes from data":                               noStructured,
	"BLOCK_STATUS never tells of more than was asked":                  noStructured,
	"space that NO_HOLE keeps is no hole":                              noStructured,
	"overlapping writes at the same time are not torn":                 "requests are done at the same time",
	"a payload that is cut off changes nothing":                        "it writes what has come",
}
