package main

import (
	"github.com/spf13/cobra"

	"lockstep/blockdev/nbd"
)

// certificatesHelp says what a certificate directory is.
const certificatesHelp = "directory with ca-cert.pem, server-cert.pem and server-key.pem, as for nbdkit; read again when they change"

// serverTLSFlags adds the flags of an NBD server that can encrypt.
func serverTLSFlags(cmd *cobra.Command, opts *nbd.TLSOptions) {
	flags := cmd.Flags()
	flags.Var(&opts.Mode, "tls", "encrypt NBD connections: on lets clients choose, require refuses those that do not")
	flags.StringVar(&opts.Dir, "tls-certificates", "", certificatesHelp)
	flags.BoolVar(&opts.VerifyPeer, "tls-verify-peer", false, "let in only clients whose certificate ca-cert.pem has signed")
}

// primaryTLSFlags adds the flags of a gateway that encrypts its connections to the nodes.
func primaryTLSFlags(cmd *cobra.Command, opts *nbd.TLSOptions) {
	flags := cmd.Flags()
	flags.Var(&opts.Mode, "primary-tls", "encrypt the connections to the nodes, whose certificates must name the host in --nbd")
	flags.StringVar(&opts.Dir, "primary-tls-certificates", "",
		"directory with ca-cert.pem, and client-cert.pem and client-key.pem if the nodes verify peers")
}

// checkTLS finds what is wrong with such flags together; flag is the name of the first of them.
func checkTLS(cmd *cobra.Command, flag string, o *nbd.TLSOptions) error {
	switch {
	case o.Mode != nbd.TLSOff && o.Dir == "":
		return usagef("%s: --%s %v: --%s-certificates DIRECTORY is missing", commandName(cmd), flag, o.Mode, flag)
	case o.Mode == nbd.TLSOff && o.Dir != "":
		return usagef("%s: --%s-certificates: --%s is off: set it to on or require", commandName(cmd), flag, flag)
	}
	return nil
}
