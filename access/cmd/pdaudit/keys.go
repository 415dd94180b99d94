package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// keyFlags are the public keys and the quorum that verifications share.
type keyFlags struct {
	ledger    []string
	witnesses []string
	quorum    int
}

func (k *keyFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	// Arrays and not slices: keys are base64 and names may hold commas.
	f.StringArrayVar(&k.ledger, "ledger-key", nil, "public key of the ledger (name+hash+key), or a file that holds it; may be repeated when it was replaced")
	f.StringArrayVar(&k.witnesses, "witness-key", nil, "public key of a witness, or a file that holds it; may be repeated, also for the keys that one witness has had")
	f.IntVar(&k.quorum, "quorum", -1, "how many of the witnesses must have cosigned (default: all that are given)")
	cobra.CheckErr(cmd.MarkFlagRequired("ledger-key"))
}

// keyring is what keyFlags name.
type keyring struct {
	ledger    note.Verifier
	witnesses []note.Verifier
	quorum    int
}

func (k *keyFlags) load() (keyring, error) {
	var ring keyring
	var ledger []note.Verifier
	for _, arg := range k.ledger {
		text, err := keyText(arg)
		if err != nil {
			return keyring{}, err
		}
		v, err := note.NewVerifier(text)
		if err != nil {
			return keyring{}, fmt.Errorf("--ledger-key: %w", err)
		}
		ledger = append(ledger, v)
	}
	if len(ledger) == 0 {
		return keyring{}, errors.New("--ledger-key is required")
	}
	ring.ledger = verify.AnyKey(ledger[0], ledger[1:]...)
	seen, names := make(map[string]bool), make(map[string]bool)
	for _, w := range k.witnesses {
		text, err := keyText(w)
		if err != nil {
			return keyring{}, err
		}
		v, err := verify.NewCosignatureVerifier(text)
		if err != nil {
			return keyring{}, fmt.Errorf("--witness-key: %w", err)
		}
		if !seen[text] { // the same key twice is one witness
			seen[text], names[v.Name()] = true, true
			ring.witnesses = append(ring.witnesses, v)
		}
	}
	ring.quorum = k.quorum
	if ring.quorum < 0 {
		ring.quorum = len(names)
	}
	if ring.quorum > len(names) { // keys of one name are those that one witness has had
		return keyring{}, fmt.Errorf("--quorum %d: only %d witnesses are given", ring.quorum, len(names))
	}
	return ring, nil
}

// keyText returns the key itself, from the argument or from the file that it names. A key always has a
// plus sign in it.
func keyText(arg string) (string, error) {
	if strings.Contains(arg, "+") {
		return arg, nil
	}
	b, err := os.ReadFile(arg)
	if err != nil {
		return "", fmt.Errorf("reading a key: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
