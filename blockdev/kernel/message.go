package kernel

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"lockstep/blockdev/nbd"
)

// Names and numbers of the driver's interface; never renumber.
const (
	familyName    = "nbd"
	familyVersion = 1
	groupName     = "nbd_mc_group"

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3
	cmdLinkDead    = 4
	cmdStatus      = 5

	attrIndex             = 1
	attrSizeBytes         = 2
	attrBlockSizeBytes    = 3
	attrTimeout           = 4
	attrServerFlags       = 5
	attrClientFlags       = 6
	attrSockets           = 7
	attrDeadConnTimeout   = 8
	attrDeviceList        = 9
	attrBackendIdentifier = 10

	attrSocketItem = 1 // in SOCKETS
	attrSocketFD   = 1 // in a socket item

	attrDeviceItem      = 1 // in DEVICE_LIST
	attrDeviceIndex     = 1 // in a device item
	attrDeviceConnected = 2
)

// AnyIndex asks for any device that is free.
const AnyIndex = -1

// maxIdentifierBytes is ours: an identifier is shown in one line of /sys.
const maxIdentifierBytes = 256

// Config is what the kernel is told of a disk.
type Config struct {
	Size      uint64 // bytes, a multiple of BlockSize
	BlockSize uint32 // bytes, of the device's sectors: a power of two from 512 to 4096
	Flags     nbd.TransmissionFlags
	// DeadTimeout is how long requests are held while no agent has the device (K3). It is cut to seconds.
	DeadTimeout time.Duration
	// Identifier says whose device it is. The same one is asked for when the device gets another socket.
	Identifier string
}

// Validate checks a configuration.
func (c Config) Validate() error {
	switch {
	case c.BlockSize < 512 || c.BlockSize > 4096 || c.BlockSize&(c.BlockSize-1) != 0:
		return fmt.Errorf("kernel: a sector of %d bytes: use 512, 1024, 2048 or 4096", c.BlockSize)
	case c.Size == 0 || c.Size%uint64(c.BlockSize) != 0:
		return fmt.Errorf("kernel: a disk of %d bytes does not consist of sectors of %d", c.Size, c.BlockSize)
	case c.DeadTimeout < time.Second:
		return fmt.Errorf("kernel: requests are to be held for %v, must be at least 1s", c.DeadTimeout)
	case c.Identifier == "" || len(c.Identifier) > maxIdentifierBytes:
		return fmt.Errorf("kernel: an identifier has 1 to %d bytes", maxIdentifierBytes)
	}
	return nil
}

// kernelFlags are the transmission flags that mean something to the driver. Others are kept from it: several
// connections are not what it gets (K1), and a later kernel may give meaning to more.
const kernelFlags = nbd.FlagHasFlags | nbd.FlagReadOnly | nbd.FlagSendFlush | nbd.FlagSendFUA | nbd.FlagSendTrim |
	nbd.FlagSendWriteZeroes

// encodeConnect is the attributes of CONNECT.
func encodeConnect(index int, c Config, fd int) []byte {
	var a attributes
	if index != AnyIndex {
		a.u32(attrIndex, uint32(index))
	}
	a.u64(attrSizeBytes, c.Size)
	a.u64(attrBlockSizeBytes, uint64(c.BlockSize))
	a.u64(attrTimeout, 0) // K2
	a.u64(attrDeadConnTimeout, uint64(c.DeadTimeout/time.Second))
	a.u64(attrServerFlags, uint64(c.Flags&kernelFlags))
	a.u64(attrClientFlags, 0) // neither destroy on disconnect nor disconnect on close
	a.text(attrBackendIdentifier, c.Identifier)
	a.list(attrSockets, socketList(fd))
	return a
}

// noSocket stands for the descriptor of a socket where there is none to hand over.
const noSocket = -1

// encodeReconfigure is the attributes of RECONFIGURE. A driver before Linux 5.3 leaves the size as it is.
func encodeReconfigure(index int, identifier string, size uint64, fd int) []byte {
	var a attributes
	a.u32(attrIndex, uint32(index))
	a.u64(attrSizeBytes, size)
	a.text(attrBackendIdentifier, identifier)
	if fd != noSocket {
		a.list(attrSockets, socketList(fd))
	}
	return a
}

func socketList(fd int) attributes {
	var item, list attributes
	item.u32(attrSocketFD, uint32(fd))
	list.list(attrSocketItem, item)
	return list
}

// encodeIndex is the attributes of DISCONNECT and STATUS.
func encodeIndex(index int) []byte {
	var a attributes
	if index != AnyIndex {
		a.u32(attrIndex, uint32(index))
	}
	return a
}

// decodeIndex reads the device's number out of the answer to CONNECT or a LINK_DEAD.
func decodeIndex(payload []byte) (int, error) {
	list, err := decodeAttributes(payload)
	if err != nil {
		return 0, err
	}
	for _, a := range list {
		if a.kind == attrIndex {
			index, err := a.u32()
			return int(index), err
		}
	}
	return 0, fmt.Errorf("%w: no device index", ErrMalformed)
}

// Status is what the driver says of one device. Connected is true also while some program has an unused device open.
type Status struct {
	Index     int
	Connected bool
}

// decodeStatus reads the answer to STATUS.
func decodeStatus(payload []byte) ([]Status, error) {
	top, err := decodeAttributes(payload)
	if err != nil {
		return nil, err
	}
	var devices []Status
	for _, a := range top {
		if a.kind != attrDeviceList {
			continue
		}
		items, err := decodeAttributes(a.value)
		if err != nil {
			return nil, err
		}
		for _, item := range items {
			s, err := decodeDevice(item.value)
			if err != nil {
				return nil, err
			}
			devices = append(devices, s)
		}
	}
	return devices, nil
}

func decodeDevice(b []byte) (Status, error) {
	s := Status{Index: AnyIndex}
	fields, err := decodeAttributes(b)
	if err != nil {
		return s, err
	}
	for _, f := range fields {
		switch f.kind {
		case attrDeviceIndex:
			index, err := f.u32()
			if err != nil {
				return s, err
			}
			s.Index = int(index)
		case attrDeviceConnected:
			connected, err := f.u8()
			if err != nil {
				return s, err
			}
			s.Connected = connected != 0
		}
	}
	if s.Index == AnyIndex {
		return s, fmt.Errorf("%w: a device without an index", ErrMalformed)
	}
	return s, nil
}

// family is the driver's address: generic netlink gives out numbers as modules are loaded.
type family struct {
	id    uint16
	group uint32 // of LINK_DEAD
}

// encodeFamilyQuery is the attributes of the controller's GETFAMILY.
func encodeFamilyQuery() []byte {
	var a attributes
	a.text(unix.CTRL_ATTR_FAMILY_NAME, familyName)
	return a
}

// decodeFamily reads the controller's answer.
func decodeFamily(payload []byte) (family, error) {
	var f family
	top, err := decodeAttributes(payload)
	if err != nil {
		return f, err
	}
	for _, a := range top {
		switch a.kind {
		case unix.CTRL_ATTR_FAMILY_ID:
			if f.id, err = a.u16(); err != nil {
				return f, err
			}
		case unix.CTRL_ATTR_MCAST_GROUPS:
			if f.group, err = decodeGroups(a.value); err != nil {
				return f, err
			}
		}
	}
	if f.id == 0 {
		return f, fmt.Errorf("%w: a family without a number", ErrMalformed)
	}
	return f, nil
}

// decodeGroups finds the number of the group that LINK_DEAD is sent to; 0 if there is none.
func decodeGroups(b []byte) (uint32, error) {
	groups, err := decodeAttributes(b)
	if err != nil {
		return 0, err
	}
	for _, g := range groups {
		fields, err := decodeAttributes(g.value)
		if err != nil {
			return 0, err
		}
		var name string
		var id uint32
		for _, f := range fields {
			switch f.kind {
			case unix.CTRL_ATTR_MCAST_GRP_NAME:
				name = f.text()
			case unix.CTRL_ATTR_MCAST_GRP_ID:
				if id, err = f.u32(); err != nil {
					return 0, err
				}
			}
		}
		if name == groupName {
			return id, nil
		}
	}
	return 0, nil
}
