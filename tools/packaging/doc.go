// Package packaging holds what a distribution's package of Lockstep installs beside the binary, and tests that it means
// something to systemd and to the binary.
//
//	*.service           /usr/lib/systemd/system   view server, node, gateway, an attached volume
//	60-lockstep.rules   /usr/lib/udev/rules.d     names for attached volumes
//	etc/lockstep/*      /etc/lockstep             the units' options, with a line on each
//
// The units run as the user lockstep (`useradd --system lockstep`), but for attaching, which takes root.
package packaging
