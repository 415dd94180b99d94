package keyring

import (
	"encoding/binary"
	"fmt"

	"github.com/prototypster/pdvault/keys"
)

// Padding hides the length of a value to within 32 bytes: a ciphertext's length is stored in clear, and
// the length of a name or of an address tells something about the person. Layout of what is encrypted:
//
//	offset  size  what
//	0       1     format, 0x01
//	1       4     length n of the value, big endian
//	5       n     the value
//	5+n     rest  zeros, up to the next multiple of 32 bytes
//
// Example, the value `"a"` (3 bytes): 01 00000003 226122 and 24 zeros. Each value has one padded form, and
// unpad accepts no other.
const (
	padFormat = 0x01
	padHeader = 5
	padStep   = 32
)

func paddedLen(n int) int { return (padHeader + n + padStep - 1) / padStep * padStep }

func pad(value []byte) []byte {
	b := make([]byte, paddedLen(len(value)))
	b[0] = padFormat
	binary.BigEndian.PutUint32(b[1:padHeader], uint32(len(value)))
	copy(b[padHeader:], value)
	return b
}

// unpad returns the value within b, which it keeps.
func unpad(b []byte) ([]byte, error) {
	if len(b) < padHeader || b[0] != padFormat {
		return nil, fmt.Errorf("padding of an unknown format: %w", keys.ErrTampered)
	}
	n := binary.BigEndian.Uint32(b[1:padHeader])
	if uint64(n) > uint64(len(b)-padHeader) || len(b) != paddedLen(int(n)) {
		return nil, fmt.Errorf("padding with a wrong length: %w", keys.ErrTampered)
	}
	var rest byte
	for _, c := range b[padHeader+int(n):] {
		rest |= c
	}
	if rest != 0 {
		return nil, fmt.Errorf("padding that is not zero: %w", keys.ErrTampered)
	}
	return b[padHeader : padHeader+int(n) : padHeader+int(n)], nil
}
